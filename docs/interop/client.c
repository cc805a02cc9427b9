/* A client with rabbitmq-c, as docs/interop.md requires: client METHOD BODY
 *
 * The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS. Compile it with
 * cc -o client client.c -lrabbitmq */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>

static const char *env(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}

static void fail(const char *code, amqp_bytes_t message, const char *outcome) {
  fprintf(stderr, "%s: %.*s (%s)\n", code, (int)message.len, (char *)message.bytes, outcome);
  exit(1);
}

static void check(amqp_rpc_reply_t reply, const char *what) {
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("unavailable", amqp_cstring_bytes(what), "did not run");
}

/* The consumer of direct reply-to exists before the first request is published. */
static amqp_connection_state_t open_connection(void) {
  char *url = strdup(env("AMQP_URL", "amqp://guest:guest@localhost:5672"));
  struct amqp_connection_info at;
  amqp_default_connection_info(&at);
  if (amqp_parse_url(url, &at)) fail("invalid_argument", amqp_cstring_bytes("AMQP_URL"), "did not run");
  amqp_connection_state_t conn = amqp_new_connection();
  if (amqp_socket_open(amqp_tcp_socket_new(conn), at.host, at.port))
    fail("unavailable", amqp_cstring_bytes("no connection"), "did not run");
  check(amqp_login(conn, at.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0, AMQP_SASL_METHOD_PLAIN, at.user, at.password), "login");
  amqp_channel_open(conn, 1);
  check(amqp_get_rpc_reply(conn), "channel");
  amqp_basic_consume(conn, 1, amqp_cstring_bytes("amq.rabbitmq.reply-to"), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  check(amqp_get_rpc_reply(conn), "consume");
  free(url);
  return conn;
}

static amqp_basic_properties_t publish(amqp_connection_state_t conn, const char *method, const char *body, char id[33]) {
  unsigned char random[16];
  if (getrandom(random, sizeof random, 0) != sizeof random) abort();
  for (int i = 0; i < 16; i++) sprintf(id + 2 * i, "%02x", random[i]);
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_APP_ID_FLAG | AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_EXPIRATION_FLAG,
      .app_id = amqp_cstring_bytes(method),
      .reply_to = amqp_cstring_bytes("amq.rabbitmq.reply-to"),
      .correlation_id = amqp_cstring_bytes(id),
      .type = amqp_cstring_bytes("rpc.v1"),
      .expiration = amqp_cstring_bytes(env("RPC_TIMEOUT_MS", "30000")),
  };
  if (amqp_basic_publish(conn, 1, amqp_empty_bytes, amqp_cstring_bytes(env("RPC_QUEUE", "rpc_queue")),
                         1 /* mandatory */, 0, &properties, amqp_cstring_bytes(body)))
    fail("unavailable", amqp_cstring_bytes("connection lost"), "may have run");
  return properties;
}

static bool same(amqp_bytes_t a, amqp_bytes_t b) { return a.len == b.len && !memcmp(a.bytes, b.bytes, a.len); }

static amqp_field_value_t *header(amqp_message_t *message, const char *name) {
  amqp_table_t *headers = &message->properties.headers;
  if (message->properties._flags & AMQP_BASIC_HEADERS_FLAG)
    for (int i = 0; i < headers->num_entries; i++)
      if (same(headers->entries[i].key, amqp_cstring_bytes(name))) return &headers->entries[i].value;
  return NULL;
}

/* Ends the program with the error, or prints the result. Only the header rpc-code marks an error;
 * the body is its message then. */
static void print_response(amqp_message_t *response) {
  amqp_field_value_t *code = header(response, "rpc-code"), *ran = header(response, "rpc-ran");
  if (code && code->kind == AMQP_FIELD_KIND_UTF8) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)code->value.bytes.len, (char *)code->value.bytes.bytes);
    bool known = ran && ran->kind == AMQP_FIELD_KIND_BOOLEAN;
    fail(name, response->body, !known ? "may have run" : ran->value.boolean ? "ran" : "did not run");
  }
  fwrite(response->body.bytes, 1, response->body.len, stdout);
}

/* Waits for the response to the request, and drops any other: it is late. */
static void await(amqp_connection_state_t conn, amqp_bytes_t id) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  long long end = now.tv_sec * 1000000LL + now.tv_nsec / 1000 + atoll(env("RPC_TIMEOUT_MS", "30000")) * 1000;
  for (;;) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long left = end - (now.tv_sec * 1000000LL + now.tv_nsec / 1000);
    if (left < 0) left = 0;
    struct timeval wait = {left / 1000000, left % 1000000};
    amqp_envelope_t envelope;
    amqp_rpc_reply_t reply = amqp_consume_message(conn, &envelope, &wait, 0);
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
      if (same(envelope.message.properties.correlation_id, id)) {
        print_response(&envelope.message);
        amqp_destroy_envelope(&envelope);
        return;
      }
      amqp_destroy_envelope(&envelope);
    } else if (reply.library_error == AMQP_STATUS_TIMEOUT) {
      fail("deadline_exceeded", amqp_cstring_bytes("no response"), "may have run");
    } else if (reply.library_error == AMQP_STATUS_UNEXPECTED_STATE) { /* a method other than basic.deliver */
      amqp_frame_t frame;
      if (!amqp_simple_wait_frame(conn, &frame) && frame.payload.method.id == AMQP_BASIC_RETURN_METHOD)
        fail("unavailable", amqp_cstring_bytes("no such queue"), "did not run");
      fail("unavailable", amqp_cstring_bytes("channel closed"), "may have run");
    } else {
      fail("unavailable", amqp_cstring_bytes(amqp_error_string2(reply.library_error)), "may have run");
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  char id[33];
  amqp_connection_state_t conn = open_connection();
  await(conn, publish(conn, argv[1], argv[2], id).correlation_id);
  amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(conn);
  return 0;
}
