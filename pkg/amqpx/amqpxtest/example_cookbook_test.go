package amqpxtest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// The recipes of docs/cookbook.md: a test compares the document with these files.

// lab is a connection to a broker in memory, with the servers of a recipe.
type lab struct {
	conn   *amqpx.Connection
	ended  sync.WaitGroup
	broker *amqpxtest.Broker
}

func newLab() *lab {
	broker := amqpxtest.NewBroker()
	conn, _ := amqpx.Connect(amqpxtest.URL, broker.Option())
	return &lab{conn: conn, broker: broker}
}

// serve starts a server of a queue.
func (l *lab) serve(queue string, register func(*amqpx.Server) error, opts ...amqpx.ServerOption) {
	server, _ := l.conn.NewServer(append(opts, amqpx.WithQueue(amqpx.Queue{Name: queue}))...)
	_ = register(server)
	l.ended.Go(func() { _ = server.Serve(context.Background()) }) // ends with the connection
	_ = server.WaitReady(context.Background())
}

// client returns a client of a queue.
func (l *lab) client(queue string) *amqpx.Client {
	client, _ := l.conn.NewClient(amqpx.WithQueue(amqpx.Queue{Name: queue}))
	return client
}

func (l *lab) close() {
	_ = l.conn.Shutdown(context.Background())
	l.ended.Wait()
}

type (
	reserveRequest struct {
		Item  string
		Count int
	}
	reservation struct{ Left int }
)

var reserve = amqpx.NewMethod[reserveRequest, reservation]("reserve", amqpx.JSON(), amqpx.CallTimeout(time.Second)) //nolint:gochecknoglobals // it does not change.

func Example_cookbookErrors() {
	l := newLab()
	defer l.close()
	handler := func(_ context.Context, r reserveRequest) (reservation, error) {
		if r.Item == "radio" {
			return reservation{}, amqpx.Errorf(amqpx.CodeUnavailable, "stocktaking").WithRetryAfter(time.Minute)
		}
		return reservation{}, amqpx.Errorf(amqpx.CodeFailedPrecondition, "none of %q is left", r.Item).
			WithDetail(amqpx.ErrorInfo{Reason: "OUT_OF_STOCK", Domain: "inventory"})
	}
	l.serve("inventory", func(s *amqpx.Server) error { return reserve.Handle(s, handler) })
	ask := func(ctx context.Context, item string) (string, error) {
		got, err := reserve.Call(ctx, l.client("inventory"), reserveRequest{Item: item, Count: 1})
		var info amqpx.ErrorInfo
		switch {
		case err == nil:
			return strconv.Itoa(got.Left), nil
		case amqpx.Detail(err, &info) && info.Reason == "OUT_OF_STOCK": // expected: an answer for the customer
			return "sold out", nil
		case amqpx.OutcomeOf(err) == amqpx.DidNotRun: // safe to call again
			return "try again", nil
		default: // not the customer's concern: its text goes to the log only
			return "", amqpx.Hide(err)
		}
	}
	ctx := context.Background()
	fmt.Println(ask(ctx, "tv"))
	_, err := ask(ctx, "radio")
	fmt.Println(err, amqpx.CodeOf(err).HTTPStatus())
	// Output:
	// sold out <nil>
	// unavailable: a service that this call needs is not available 503
}

type userKey struct{}

// authenticate refuses a call without a valid token, and gives the handler its user.
func authenticate(users map[string]string) amqpx.Middleware {
	return func(next amqpx.Handler) amqpx.Handler {
		return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			token, _ := req.Header["token"].(string)
			user, ok := users[token]
			if !ok {
				return nil, amqpx.Refuse(amqpx.CodeUnauthenticated, "the token is not valid")
			}
			return next(context.WithValue(ctx, userKey{}, user), req)
		}
	}
}

func Example_cookbookAuthorization() {
	l := newLab()
	defer l.close()
	// Which service may call which methods: by the users of the broker.
	rules, err := amqpx.NewAuthorizationRules(map[string][]string{
		"orders.*": {"gateway", "app"},
		"admin.*":  {"operator"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	allow := amqpx.Authorize(func() *amqpx.AuthorizationRules { return rules }, nil)
	// Which customer a call is for: by a token in a header.
	customers := authenticate(map[string]string{"secret": "alice"})
	// Idempotency keys belong to the customer, and not to the service that calls.
	owner := amqpx.WithDedupScope(func(ctx context.Context, _ *amqpx.Request) string {
		user, _ := ctx.Value(userKey{}).(string)
		return user
	})
	register := func(s *amqpx.Server) error {
		whoami := func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			user, _ := ctx.Value(userKey{}).(string)
			return []byte(user), nil
		}
		return errors.Join(s.Handle("orders.list", whoami), s.Handle("admin.reset", whoami))
	}
	l.serve("orders", register, amqpx.WithMiddleware(allow, customers), owner)

	client, ctx := l.client("orders"), context.Background()
	for method, token := range map[string]string{"orders.list": "secret"} {
		response, err := client.Call(ctx, method, nil, amqpx.WithHeader(map[string]any{"token": token}))
		fmt.Println(string(response), err)
	}
	_, err = client.Call(ctx, "orders.list", nil)
	fmt.Println(err, "|", amqpx.OutcomeOf(err))
	_, err = client.Call(ctx, "admin.reset", nil)
	fmt.Println(err, "|", amqpx.OutcomeOf(err))
	// Output:
	// alice <nil>
	// unauthenticated: the token is not valid | did not run
	// permission_denied: user "app" may not call "admin.reset" | did not run
}

// orderTable stands for a table of a database, with a unique column for the key.
type orderTable struct {
	mu     sync.Mutex
	orders map[string]string
}

// insertOrGet returns the order with a key, a new one if there is none.
func (t *orderTable) insertOrGet(key, order string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if earlier, ok := t.orders[key]; ok {
		return earlier
	}
	t.orders[key] = order
	return order
}

func Example_cookbookIdempotency() {
	l := newLab()
	defer l.close()
	table := &orderTable{orders: make(map[string]string)}
	place := func(ctx context.Context, item string) (string, error) {
		req, ok := amqpx.RequestFromContext(ctx)
		if !ok || req.IdempotencyKey == "" {
			return "", amqpx.Errorf(amqpx.CodeInvalidArgument, "an order needs an idempotency key")
		}
		return table.insertOrGet(req.User+" "+req.IdempotencyKey, item), nil
	}
	method := amqpx.NewMethod[string, string]("place", amqpx.JSON())
	for range 2 { // two replicas
		l.serve("orders", func(s *amqpx.Server) error { return method.Handle(s, place) })
	}
	client, ctx := l.client("orders"), context.Background()
	for range 4 { // as after a deadline that leaves open whether the order was placed
		_, err := method.Call(ctx, client, "1 tv", amqpx.WithIdempotencyKey("order-7"))
		if err != nil {
			fmt.Println(err)
		}
	}
	_, err := method.Call(ctx, client, "1 tv")
	fmt.Println(len(table.orders), "order |", err)
	// Output:
	// 1 order | invalid_argument: an order needs an idempotency key
}

type (
	pageRequest struct {
		After string // the last item of the page before; "" for the first page
		Limit int
	}
	page struct {
		Items []string
		More  bool
	}
)

func Example_cookbookPages() {
	l := newLab()
	defer l.close()
	items := []string{"chair", "lamp", "radio", "sofa", "tv"}
	listItems := amqpx.NewMethod[pageRequest, page]("items.list", amqpx.JSON(), amqpx.Idempotent())
	list := func(_ context.Context, r pageRequest) (page, error) {
		if r.Limit < 1 {
			return page{}, amqpx.Errorf(amqpx.CodeInvalidArgument, "the limit must be positive")
		}
		first, found := slices.BinarySearch(items, r.After)
		if found {
			first++
		}
		end := min(first+min(r.Limit, 100), len(items))
		return page{Items: items[first:end], More: end < len(items)}, nil
	}
	watch := func(_ context.Context, s *amqpx.ServerStream) error {
		for _, item := range items {
			if err := s.Send([]byte(item)); err != nil { // waits while the client is slower
				return err
			}
		}
		return nil
	}
	l.serve("items", func(s *amqpx.Server) error {
		return errors.Join(listItems.Handle(s, list), s.HandleStream("items.watch", watch))
	})
	client, ctx := l.client("items"), context.Background()

	// Pages: each is a call of its own, which any server answers.
	for next := (pageRequest{Limit: 2}); ; {
		got, err := listItems.Call(ctx, client, next)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(strings.Join(got.Items, " "))
		if !got.More {
			break
		}
		next.After = got.Items[len(got.Items)-1]
	}
	// A stream: one server, in order, as fast as the loop takes the items.
	for item, err := range client.Stream(ctx, "items.watch", nil) {
		if err != nil { // the connection or the server was lost: begin again behind the last item
			fmt.Println(err, amqpx.ProgressOf(err).Received)
			break
		}
		fmt.Print(string(item), ";")
	}
	// Output:
	// chair lamp
	// radio sofa
	// tv
	// chair;lamp;radio;sofa;tv;
}

func Example_cookbookDeadlines() {
	l := newLab()
	defer l.close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // or CallTimeout
	defer cancel()
	second := amqpx.NewMethod[string, string]("second", amqpx.JSON(), amqpx.CallTimeout(time.Minute))
	first := amqpx.NewMethod[string, string]("first", amqpx.JSON())
	l.serve("inventory", func(s *amqpx.Server) error {
		return second.Handle(s, func(ctx context.Context, _ string) (string, error) {
			deadline, _ := ctx.Deadline()
			fmt.Println("at most 10s are left:", time.Until(deadline) <= 10*time.Second)
			cancel() // the first caller cancels
			<-ctx.Done()
			return "", ctx.Err()
		})
	})
	inventory := l.client("inventory")
	l.serve("orders", func(s *amqpx.Server) error {
		return first.Handle(s, func(ctx context.Context, item string) (string, error) {
			left, err := second.Call(ctx, inventory, item) // the handler's context: its deadline and its cancellation
			return left, amqpx.Hide(err)
		})
	})
	_, err := first.Call(ctx, l.client("orders"), "tv")
	fmt.Println(amqpx.CodeOf(err))
	// Output:
	// at most 10s are left: true
	// canceled
}

func Example_cookbookUrgent() {
	l := newLab()
	defer l.close()
	cancel := amqpx.NewMethod[string, string]("cancel", amqpx.JSON(), amqpx.WithPriority(5)) // every call of the method
	started, goOn := make(chan string, 4), make(chan struct{})
	run := func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		started <- fmt.Sprint(req.Method, " ", req.Priority)
		<-goOn
		return []byte(`"done"`), ctx.Err()
	}
	var server *amqpx.Server
	l.serve("orders", func(s *amqpx.Server) error {
		server = s
		return errors.Join(s.Handle("report", run), s.Handle("cancel", run))
	}, amqpx.WithWorkers(1), amqpx.WithPrefetch(10))
	orders := l.client("orders")
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()

	var calls sync.WaitGroup
	report := func(opts ...amqpx.CallOption) { calls.Go(func() { _, _ = orders.Call(ctx, "report", nil, opts...) }) }
	report()
	fmt.Println(<-started)
	report()
	report(amqpx.WithPriority(9)) // one call
	calls.Go(func() { _, _ = cancel.Call(ctx, orders, "order 7") })
	for server.Stats().Waiting < 3 && ctx.Err() == nil { // until all of them are in the server
		runtime.Gosched()
	}
	close(goOn)
	calls.Wait()
	for range 3 {
		fmt.Println(<-started)
	}
	// Output:
	// report 0
	// report 9
	// cancel 5
	// report 0
}

func Example_cookbookShutdown() {
	broker := amqpxtest.NewBroker()
	conn, _ := amqpx.Connect(amqpxtest.URL, broker.Option())
	server, _ := conn.NewServer(amqpx.WithDrainTimeout(20 * time.Second))
	_ = server.Handle("m", func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil })

	signaled, stop := context.WithCancel(context.Background()) // signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(signaled)) }() // ends with Shutdown
	_ = server.WaitReady(signaled)
	stop()
	<-signaled.Done()
	// First what takes work from outside, such as an http.Server; then servers drain, then clients wait.
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second) // less than the grace period
	defer cancel()
	fmt.Println(conn.Shutdown(ctx), <-served)
	// Output: <nil> <nil>
}
