import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * A client with RabbitMQ's amqp-client, as docs/interop.md requires: java Client METHOD BODY. The
 * environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS.
 */
public final class Client {
    /** A call that failed. The outcome tells whether a function ran. */
    static final class RpcException extends Exception {
        private static final long serialVersionUID = 1L;

        RpcException(Object code, String message, String outcome) {
            super(code + ": " + message + " (" + outcome + ")");
        }
    }

    private record Response(Map<String, Object> headers, byte[] body) {}

    private final Channel channel;
    private final String queue;
    private final String replyTo;
    private final Map<String, CompletableFuture<Response>> waiting = new ConcurrentHashMap<>();

    Client(Channel channel, String queue) throws Exception {
        this.channel = channel;
        this.queue = queue;
        this.replyTo = channel.queueDeclare().getQueue(); // exclusive, with a name of the broker
        Map<String, Object> returned = Map.of("rpc-code", "unavailable", "rpc-ran", false);
        channel.addReturnListener((code, text, exchange, key, properties, body) ->
            complete(properties, new Response(returned, "no such queue".getBytes(StandardCharsets.UTF_8))));
        channel.basicConsume(replyTo, true, (tag, delivery) -> {
            Map<String, Object> headers = delivery.getProperties().getHeaders();
            complete(delivery.getProperties(), new Response(headers == null ? Map.of() : headers, delivery.getBody()));
        }, tag -> {});
    }

    private void complete(BasicProperties properties, Response response) {
        CompletableFuture<Response> call = waiting.remove(String.valueOf(properties.getCorrelationId()));
        if (call != null) { // otherwise the response came after its deadline
            call.complete(response);
        }
    }

    byte[] call(String method, byte[] body, long timeoutMs) throws Exception {
        String id = UUID.randomUUID().toString();
        CompletableFuture<Response> call = new CompletableFuture<>();
        waiting.put(id, call);
        BasicProperties properties = new BasicProperties.Builder()
            .appId(method).replyTo(replyTo).correlationId(id).type("rpc.v1").expiration(Long.toString(timeoutMs)).build();
        Response response;
        try {
            synchronized (channel) { // a channel publishes for one thread at a time
                channel.basicPublish("", queue, true, properties, body);
            }
            response = call.get(timeoutMs, TimeUnit.MILLISECONDS);
        } catch (TimeoutException e) {
            throw new RpcException("deadline_exceeded", "no response", "may have run");
        } finally {
            waiting.remove(id);
        }
        Object code = response.headers().get("rpc-code");
        if (code == null) {
            return response.body();
        }
        Object ran = response.headers().get("rpc-ran"); // the body is the error's message, and no result
        String outcome = Boolean.TRUE.equals(ran) ? "ran" : Boolean.FALSE.equals(ran) ? "did not run" : "may have run";
        throw new RpcException(code, new String(response.body(), StandardCharsets.UTF_8), outcome);
    }

    public static void main(String[] args) throws Exception {
        Map<String, String> env = System.getenv();
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(env.getOrDefault("AMQP_URL", "amqp://guest:guest@localhost:5672"));
        try (Connection connection = factory.newConnection()) {
            Client client = new Client(connection.createChannel(), env.getOrDefault("RPC_QUEUE", "rpc_queue"));
            long timeoutMs = Long.parseLong(env.getOrDefault("RPC_TIMEOUT_MS", "30000"));
            System.out.write(client.call(args[0], args[1].getBytes(StandardCharsets.UTF_8), timeoutMs));
            System.out.flush();
        } catch (RpcException e) {
            System.err.println(e.getMessage());
            System.exit(1);
        }
    }
}
