#!/usr/bin/perl
# A client with AnyEvent::RabbitMQ, as docs/interop.md requires: client.pl METHOD BODY
#
# The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS.
use strict;
use warnings;
use AnyEvent;
use AnyEvent::RabbitMQ;

# step runs one asynchronous method of an object, and waits for its result.
sub step {
    my ($object, $method, %args) = @_;
    my $done = AnyEvent->condvar;
    $object->$method(
        %args,
        on_success => sub { $done->send(@_) },
        on_failure => sub { $done->croak("$method: " . (ref $_[0] ? $_[0]->method_frame->reply_text : $_[0]) . "\n") },
    );
    return $done->recv;
}

# random_id returns 128 random bits in hexadecimal digits.
sub random_id {
    open my $source, '<:raw', '/dev/urandom' or die "/dev/urandom: $!\n";
    read($source, my $bytes, 16) == 16 or die "/dev/urandom: $!\n";
    return unpack 'H*', $bytes;
}

# call returns the result of a call, or the code, message and outcome of an error.
sub call {
    my ($connection, $queue, $method, $body, $timeout_ms) = @_;
    my $id      = random_id();
    my $arrived = AnyEvent->condvar;
    my $channel = step(
        $connection, 'open_channel',
        on_close => sub { $arrived->send(undef, 'unavailable', 'channel closed', 'may have run') },
    );
    step($channel, 'confirm');    # otherwise on_return does not know the request
    # The consumer of direct reply-to exists before the request is published.
    step(
        $channel, 'consume',
        queue      => 'amq.rabbitmq.reply-to',
        no_ack     => 1,
        on_consume => sub {
            my ($response) = @_;
            $arrived->send(result($response)) if ($response->{header}->correlation_id // '') eq $id;    # or it is late
        },
    );
    # No type, because the library cannot read 64-bit integers, such as the rpc-retry of a refusal:
    # the deadline counts in the queue only.
    $channel->publish(
        routing_key => $queue,
        mandatory   => 1,
        on_return   => sub { $arrived->send(undef, 'unavailable', 'no such queue', 'did not run') },
        body        => $body,
        header      => {
            app_id         => $method,
            reply_to       => 'amq.rabbitmq.reply-to',
            correlation_id => $id,
            expiration     => $timeout_ms,
        },
    );
    my $timer = AnyEvent->timer(
        after => $timeout_ms / 1000,
        cb    => sub { $arrived->send(undef, 'deadline_exceeded', 'no response', 'may have run') },
    );
    return $arrived->recv;
}

# result reads a response. Only the header rpc-code marks an error; the body is its message then.
sub result {
    my ($response) = @_;
    my $headers = $response->{header}->headers // {};
    my $body    = $response->{body} ? $response->{body}->payload : '';    # an empty body is undefined
    return $body if !defined $headers->{'rpc-code'};
    my $ran = $headers->{'rpc-ran'};
    return (undef, $headers->{'rpc-code'}, $body, !defined $ran ? 'may have run' : $ran ? 'ran' : 'did not run');
}

my $url = $ENV{AMQP_URL} // 'amqp://guest:guest@localhost:5672';
my ($user, $pass, $host, $port, $vhost) = $url =~ m{^amqp://([^:]*):([^@]*)@([^:/]+)(?::(\d+))?(?:/(.*))?$}
    or die "AMQP_URL is not amqp://user:password\@host:port/vhost\n";
s/%([0-9a-f]{2})/chr hex $1/gie for grep { defined } $user, $pass, $vhost;

my $connection = step(
    AnyEvent::RabbitMQ->new->load_xml_spec, 'connect',
    host  => $host,
    port  => $port  // 5672,
    user  => $user,
    pass  => $pass,
    vhost => $vhost // '/',
);
my ($result, @error) =
    call($connection, $ENV{RPC_QUEUE} // 'rpc_queue', @ARGV[0, 1], $ENV{RPC_TIMEOUT_MS} // 30_000);
step($connection, 'close');
if (@error) {
    printf STDERR "%s: %s (%s)\n", @error;
    exit 1;
}
print $result;
