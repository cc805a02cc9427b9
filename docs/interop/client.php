<?php
// A client with php-amqplib, as docs/interop.md requires: php client.php METHOD BODY
//
// The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS.

require_once 'PhpAmqpLib/autoload.php'; // with Composer: vendor/autoload.php

use PhpAmqpLib\Channel\AMQPChannel;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Exception\AMQPTimeoutException;
use PhpAmqpLib\Message\AMQPMessage;

/** A call that failed. The outcome tells whether a function ran. */
class RpcException extends Exception
{
    public function __construct(string $code, string $message, string $outcome)
    {
        parent::__construct("$code: $message ($outcome)");
    }
}

class Client
{
    private string $replyTo;
    private array $responses = [];

    public function __construct(private AMQPChannel $channel, private string $queue)
    {
        $channel->set_return_listener(function ($code, $text, $exchange, $key, AMQPMessage $request) {
            $this->arrived($request, ['rpc-code' => 'unavailable', 'rpc-ran' => false], 'no such queue');
        });
        [$this->replyTo] = $channel->queue_declare('', false, false, true, true); // exclusive
        $channel->basic_consume($this->replyTo, '', false, true, false, false, function (AMQPMessage $response) {
            $headers = $response->has('application_headers') ? $response->get('application_headers')->getNativeData() : [];
            $this->arrived($response, $headers, $response->getBody());
        });
    }

    public function call(string $method, string $body, int $timeoutMs = 30000): string
    {
        $id = bin2hex(random_bytes(16));
        $this->responses[$id] = null;
        $request = new AMQPMessage($body, [
            'app_id' => $method, 'reply_to' => $this->replyTo, 'correlation_id' => $id,
            'type' => 'rpc.v1', 'expiration' => (string) $timeoutMs,
        ]);
        $this->channel->basic_publish($request, '', $this->queue, true); // mandatory
        $end = microtime(true) + $timeoutMs / 1000;
        try {
            while ($this->responses[$id] === null) {
                $this->channel->wait(null, false, max($end - microtime(true), 0.001));
            }
            [$headers, $result] = $this->responses[$id];
        } catch (AMQPTimeoutException) {
            throw new RpcException('deadline_exceeded', 'no response', 'may have run');
        } finally {
            unset($this->responses[$id]);
        }
        if (isset($headers['rpc-code'])) { // the body is the error's message, and no result
            $outcome = match ($headers['rpc-ran'] ?? null) { true => 'ran', false => 'did not run', default => 'may have run' };
            throw new RpcException($headers['rpc-code'], $result, $outcome);
        }
        return $result;
    }

    /** A response after its deadline finds no call, and is dropped. */
    private function arrived(AMQPMessage $message, array $headers, string $body): void
    {
        $id = $message->has('correlation_id') ? $message->get('correlation_id') : '';
        if (array_key_exists($id, $this->responses)) {
            $this->responses[$id] = [$headers, $body];
        }
    }
}

$url = array_map('rawurldecode', parse_url(getenv('AMQP_URL') ?: 'amqp://guest:guest@localhost:5672'));
$vhost = isset($url['path']) ? substr($url['path'], 1) : '/';
$connection = new AMQPStreamConnection($url['host'], $url['port'] ?? 5672, $url['user'], $url['pass'], $vhost);
try {
    $client = new Client($connection->channel(), getenv('RPC_QUEUE') ?: 'rpc_queue');
    echo $client->call($argv[1], $argv[2], (int) (getenv('RPC_TIMEOUT_MS') ?: 30000));
} catch (RpcException $e) {
    fwrite(STDERR, $e->getMessage() . "\n");
    exit(1);
} finally {
    $connection->close();
}
