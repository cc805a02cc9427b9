import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.LongString;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;

/**
 * A server with RabbitMQ's amqp-client, as docs/interop.md requires: java Server. The environment has
 * AMQP_URL and RPC_QUEUE. The server prints "ready" once it consumes, and at the end how many requests
 * it answered.
 */
public final class Server {
    /** A failure with a code of docs/protocol.md, and a message for the caller. */
    static final class RpcException extends Exception {
        private static final long serialVersionUID = 1L;
        private final String code;

        RpcException(String code, String message) {
            super(message);
            this.code = code;
        }
    }

    interface Function {
        byte[] run(byte[] body) throws Exception;
    }

    private record Response(Map<String, Object> headers, byte[] body) {
        static Response failure(String code, String message, boolean ran) {
            return new Response(new HashMap<>(Map.of("rpc-code", code, "rpc-ran", ran)), bytes(message));
        }
    }

    private static final int WORKERS = 4;
    private static final String DIRECT = "amq.rabbitmq.reply-to";
    /** A forged address would end the server's connection. */
    private static final Pattern DIRECT_ADDRESS =
        Pattern.compile(Pattern.quote(DIRECT) + "\\.g(1h|2d)[A-Za-z0-9+/]+=*\\.[^.]+");

    /** Every server of a queue has the same functions: the broker gives any request to any server. */
    private static final Map<String, Function> FUNCTIONS = Map.of(
        "echo", body -> body,
        "divide", body -> {
            String[] parts = text(body).split(" ");
            return bytes(Long.toString(Long.parseLong(parts[0]) / Long.parseLong(parts[1])));
        },
        "find", body -> {
            throw new RpcException("not_found", "no such thing: " + text(body));
        });

    private final AtomicInteger answered = new AtomicInteger();
    private final Semaphore idle = new Semaphore(WORKERS);

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    /** Returns the time that the caller gives the server, or null. */
    private static BigInteger budgetMs(BasicProperties request, Map<String, Object> headers) {
        Object budget = headers.get("rpc-timeout-ms");
        if (budget == null && request.getType() != null && request.getType().startsWith("rpc.v1")) {
            budget = request.getExpiration();
        }
        return budget == null ? null : new BigInteger(budget.toString());
    }

    /** Returns the response, and throws nothing. */
    private static Response run(BasicProperties request, byte[] body) {
        Map<String, Object> headers = request.getHeaders() == null ? Map.of() : request.getHeaders();
        String method = request.getAppId();
        if (method == null || method.isEmpty()) {
            method = headers.get("rpc-method") instanceof LongString header ? header.toString() : "";
        }
        if (method.isEmpty()) {
            return Response.failure("invalid_argument", "no method: app_id is empty", false);
        }
        try {
            BigInteger budget = budgetMs(request, headers);
            if (budget != null && budget.signum() < 0) {
                throw new NumberFormatException();
            }
            if (budget != null && budget.signum() == 0) { // with a prefetch of 1 no request waits in this server
                return Response.failure("deadline_exceeded", "the time for the call is used up", false);
            }
        } catch (NumberFormatException e) {
            return Response.failure("invalid_argument", "rpc-timeout-ms is no number of milliseconds", false);
        }
        Function function = FUNCTIONS.get(method);
        if (function == null) {
            return Response.failure("unimplemented", "method \"" + method + "\" is unknown to this server", false);
        }
        try {
            return new Response(new HashMap<>(), function.run(body));
        } catch (RpcException e) {
            return Response.failure(e.code, e.getMessage(), true);
        } catch (Throwable e) { // what it says is for the log, not for the caller
            System.err.println(method + " failed: " + e);
            return Response.failure("internal", "internal error", true);
        }
    }

    /** Publishes a response, and returns when the broker has confirmed it. */
    private static void respond(Channel channel, BasicProperties request, Response response)
            throws IOException, InterruptedException {
        String replyTo = request.getReplyTo();
        boolean direct = replyTo != null && replyTo.startsWith(DIRECT);
        if (replyTo == null || replyTo.isEmpty() || direct && !DIRECT_ADDRESS.matcher(replyTo).matches()) {
            return; // nobody waits
        }
        String id = request.getCorrelationId() == null ? request.getMessageId() : request.getCorrelationId();
        BasicProperties properties = new BasicProperties.Builder().correlationId(id).headers(response.headers()).build();
        channel.basicPublish("", replyTo, properties, response.body());
        if (!channel.waitForConfirms()) {
            System.err.println("response lost: the broker refused it");
        }
    }

    private void handle(Channel channel, Delivery delivery) {
        long tag = delivery.getEnvelope().getDeliveryTag();
        idle.acquireUninterruptibly();
        try {
            Response response = run(delivery.getProperties(), delivery.getBody());
            boolean refused = Boolean.FALSE.equals(response.headers().get("rpc-ran"));
            if (refused && delivery.getEnvelope().isRedeliver()) {
                refused = false; // another server may have run it
                response.headers().remove("rpc-ran");
            }
            if (refused) { // first the acknowledgement: after this response nobody may run the request
                channel.basicAck(tag, false);
                // A caller that tries again distinguishes the refusals by their numbers.
                Map<String, Object> headers = delivery.getProperties().getHeaders();
                response.headers().put("rpc-retry", headers == null ? 0 : headers.getOrDefault("rpc-retry", 0));
            }
            respond(channel, delivery.getProperties(), response);
            if (!refused) {
                channel.basicAck(tag, false);
            }
            answered.incrementAndGet();
        } catch (IOException | InterruptedException | ShutdownSignalException e) {
            System.err.println("connection lost: " + e); // the broker delivers the request again
        } finally {
            idle.release();
        }
    }

    public static void main(String[] args) throws Exception {
        Server server = new Server();
        Map<String, String> env = System.getenv();
        String queue = env.getOrDefault("RPC_QUEUE", "rpc_queue");
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(env.getOrDefault("AMQP_URL", "amqp://guest:guest@localhost:5672"));
        Connection connection = factory.newConnection();
        Map<Channel, String> consumers = new HashMap<>();
        for (int i = 0; i < WORKERS; i++) { // the library calls each channel's consumer in one thread at a time
            Channel channel = connection.createChannel();
            channel.queueDeclare(queue, true, false, false, null); // as our servers declare it
            channel.basicQos(1); // what it holds, no other server can run
            channel.confirmSelect();
            consumers.put(channel, channel.basicConsume(queue, false, (tag, d) -> server.handle(channel, d), tag -> {}));
        }
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                for (Map.Entry<Channel, String> consumer : consumers.entrySet()) {
                    consumer.getKey().basicCancel(consumer.getValue());
                }
                server.idle.acquireUninterruptibly(WORKERS); // the requests that are running
                connection.close();
            } catch (IOException e) {
                System.err.println("close: " + e);
            }
            System.out.println(server.answered.get());
        }));
        System.out.println("ready");
    }
}
