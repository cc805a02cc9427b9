// A client over STOMP 1.2 without a library, as docs/interop.md requires: node client.js METHOD BODY
//
// The environment has STOMP_URL, RPC_QUEUE and RPC_TIMEOUT_MS. The broker needs the plugin
// rabbitmq_stomp.
'use strict';
const net = require('node:net');
const { randomUUID } = require('node:crypto');

// A call that failed. The outcome tells whether a function ran.
class RpcError extends Error {
  constructor(code, message, outcome) {
    super(`${code}: ${message} (${outcome})`);
  }
}

const escapes = { '\\': '\\\\', '\r': '\\r', '\n': '\\n', ':': '\\c' };
const unescapes = { '\\\\': '\\', '\\r': '\r', '\\n': '\n', '\\c': ':' };
const escape = (text) => String(text).replace(/[\\\r\n:]/g, (c) => escapes[c]);
const unescape = (text) => text.replace(/\\[\\rnc]/g, (c) => unescapes[c]);

function frame(command, headers, body = '') {
  // The frames CONNECT and CONNECTED have no escapes.
  const raw = command === 'CONNECT' ? String : escape;
  const lines = Object.entries(headers).map(([name, value]) => `${raw(name)}:${raw(value)}\n`).join('');
  const head = `${command}\n${lines}content-length:${Buffer.byteLength(body)}\n\n`;
  return Buffer.concat([Buffer.from(head), Buffer.from(body), Buffer.from([0])]);
}

// Yields the frames that the broker sends.
async function* frames(socket) {
  let buffer = Buffer.alloc(0);
  for await (const chunk of socket) {
    buffer = Buffer.concat([buffer, chunk]);
    for (;;) {
      while (buffer[0] === 10 || buffer[0] === 13) buffer = buffer.subarray(1); // between frames
      const end = buffer.indexOf('\n\n');
      if (end < 0) break;
      const [command, ...lines] = buffer.subarray(0, end).toString().split(/\r?\n/);
      const headers = Object.fromEntries(lines.map((line) => line.split(':', 2).map(unescape)));
      const length = headers['content-length'] ?? buffer.indexOf(0, end + 2) - end - 2;
      const next = end + 2 + Number(length) + 1; // after the zero byte
      if (length < 0 || buffer.length < next) break;
      yield { command, headers, body: buffer.subarray(end + 2, next - 1) };
      buffer = buffer.subarray(next);
    }
  }
}

async function call(queue, method, body, timeoutMs) {
  const url = new URL(process.env.STOMP_URL ?? 'stomp://guest:guest@localhost:61613/%2F');
  const socket = net.connect(Number(url.port || 61613), url.hostname);
  const id = randomUUID();
  const timer = setTimeout(() => socket.destroy(new RpcError('deadline_exceeded', 'no response', 'may have run')), timeoutMs);
  try {
    socket.write(frame('CONNECT', {
      'accept-version': '1.2', host: decodeURIComponent(url.pathname.slice(1)) || '/',
      login: decodeURIComponent(url.username), passcode: decodeURIComponent(url.password),
    }));
    for await (const { command, headers, body: response } of frames(socket)) {
      if (command === 'CONNECTED') {
        socket.write(frame('SEND', {
          destination: `/amq/queue/${queue}`, 'reply-to': '/temp-queue/responses', 'correlation-id': id,
          'app-id': method, type: 'rpc.v1', expiration: timeoutMs,
        }, body));
      } else if (command === 'ERROR') {
        throw new RpcError('unavailable', headers.message, 'may have run');
      } else if (command === 'MESSAGE' && headers['correlation-id'] === id) { // any other is late
        if (!('rpc-code' in headers)) return response;
        // RabbitMQ drops rpc-ran, a boolean; rpc-retry comes only with a false one.
        const outcome = 'rpc-retry' in headers ? 'did not run' : 'may have run';
        throw new RpcError(headers['rpc-code'], response, outcome); // the body is its message
      }
    }
    throw new RpcError('unavailable', 'connection lost', 'may have run');
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

const [method, body] = process.argv.slice(2);
call(process.env.RPC_QUEUE ?? 'rpc_queue', method, body, Number(process.env.RPC_TIMEOUT_MS ?? 30000)).then(
  (response) => process.stdout.write(response),
  (error) => {
    console.error(error.message);
    process.exitCode = 1;
  },
);
