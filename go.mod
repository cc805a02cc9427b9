module rabbitmq-rpc

go 1.26
