package amqpxproto_test

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxcodec/amqpxproto"
)

func ExampleCodec() {
	double := amqpx.NewMethod[*wrapperspb.Int64Value, *wrapperspb.Int64Value]("double", amqpxproto.Codec())
	handler := double.Handler(func(_ context.Context, n *wrapperspb.Int64Value) (*wrapperspb.Int64Value, error) {
		return wrapperspb.Int64(2 * n.GetValue()), nil
	})
	response, err := double.Call(context.Background(), caller(handler), wrapperspb.Int64(21))
	fmt.Println(response.GetValue(), err)
	// Output: 42 <nil>
}
