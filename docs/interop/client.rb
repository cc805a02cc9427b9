# A client with bunny, as docs/interop.md requires: client.rb METHOD BODY
#
# The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS.

require 'bunny'
require 'securerandom'
require 'timeout'

# A call that failed. The outcome tells whether a function ran.
class RpcError < StandardError
  def initialize(code, message, outcome)
    super("#{code}: #{message} (#{outcome})")
  end
end

class Client
  OUTCOMES = { true => 'ran', false => 'did not run' }.freeze
  RETURNED = { 'rpc-code' => 'unavailable', 'rpc-ran' => false }.freeze

  def initialize(connection, queue)
    @queue = queue
    channel = connection.create_channel
    @waiting = {}
    @exchange = channel.default_exchange
    @exchange.on_return { |_info, properties, _body| answer(properties, RETURNED, 'no such queue') }
    @replies = channel.queue('', exclusive: true)
    @replies.subscribe { |_info, properties, body| answer(properties, properties.headers || {}, body) }
  end

  def call(method, body, timeout_ms: 30_000)
    id = SecureRandom.uuid
    response = @waiting[id] = Queue.new
    @exchange.publish(body, routing_key: @queue, mandatory: true, app_id: method, reply_to: @replies.name,
                            correlation_id: id, type: 'rpc.v1', expiration: timeout_ms.to_s)
    headers, result = Timeout.timeout(timeout_ms / 1000.0) { response.pop }
    return result unless headers.key?('rpc-code')

    # The body is the error's message, and no result.
    raise RpcError.new(headers['rpc-code'], result, OUTCOMES.fetch(headers['rpc-ran'], 'may have run'))
  rescue Timeout::Error
    raise RpcError.new('deadline_exceeded', 'no response', 'may have run')
  ensure
    @waiting.delete(id)
  end

  private

  # A response after its deadline finds no call, and is dropped.
  def answer(properties, headers, body)
    @waiting[properties.correlation_id]&.push([headers, body])
  end
end

connection = Bunny.new(ENV.fetch('AMQP_URL', 'amqp://guest:guest@localhost:5672')).start
begin
  client = Client.new(connection, ENV.fetch('RPC_QUEUE', 'rpc_queue'))
  print client.call(*ARGV, timeout_ms: Integer(ENV.fetch('RPC_TIMEOUT_MS', '30000')))
rescue RpcError => e
  abort e.message # to standard error, with exit code 1
ensure
  connection.close
end
