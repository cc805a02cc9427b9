package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestSecretString(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"amqp://host/", "amqp://guest@host:5672"},
		{"amqp://user:hunter2@host:5672/v", "amqp://user@host:5672"},
		{"amqps://u:hunter2@a/, amqps://u:hunter2@b/", "amqps://u@a:5671,amqps://u@b:5671"},
		{"amqp://u:hunter%zz2@a/", "xxxxx"},
		{"amqp://h/,amqp://u:12/hunter2@a/", "xxxxx"},
		{"amqp://h/?password=hunter2", "xxxxx"},
		{"u:hunter2@a", "xxxxx"},
		{"amqp://u:hun,ter2@a/", "xxxxx"},
		{"hunter2", "xxxxx"},
	} {
		if got := Secret(c.in).String(); got != c.want {
			t.Errorf("%q is shown as %q, want %q", c.in, got, c.want)
		}
	}
}

func TestSecretNeverPrinted(t *testing.T) {
	t.Parallel()
	a := AMQP{URL: "amqp://user:hunter2@host/"}
	var log bytes.Buffer
	logger := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&log), zap.DebugLevel))
	logger.Info("start", zap.Any("config", Describe(&a)), zap.Any("raw", a), zap.Stringer("url", a.URL), zap.Any("u", a.URL))
	encoded, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	for how, text := range map[string]string{
		"%v": fmt.Sprintf("%v", a), "%+v": fmt.Sprintf("%+v", a), "%#v": fmt.Sprintf("%#v", a),
		"%q": fmt.Sprintf("%q", a.URL), "json": string(encoded), "zap": log.String(),
	} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s shows the password: %s", how, text)
		}
		if !strings.Contains(text, "user@host:5672") {
			t.Errorf("%s does not show the URL: %s", how, text)
		}
	}
	if got := a.URL.Reveal(); got != "amqp://user:hunter2@host/" {
		t.Errorf("Reveal returned %q", got)
	}
}

// FuzzSecret puts a secret into URLs of every shape, in the variable for URLs and in further
// variables. No fault and no logged setting may show the secret, unless it stands in the place
// of the user or the host.
func FuzzSecret(f *testing.F) {
	const marker = "4711-hunter2-S3cr3t"
	for _, form := range []string{
		"amqp://guest:$@h:5672/", "amqp://guest:123/$@h/", "amqp://guest:1?$@h/", "amqp://u:1#$@h/", "amqp://a;amqp://u:$@b//",
		"amqp://guest:12,amqp://$@h/", "amqp://$@h/", "amqp://h/?password=$", "amqp://h/guest:$", "ampq://u:$@h", "$", "u:$@h", "=$,a=",
	} {
		before, after, _ := strings.Cut(form, "$")
		f.Add(before, after)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		value := before + marker + after
		if strings.ContainsRune(value, 0) {
			return // not possible in an environment
		}
		for _, name := range []string{"AMQP_URL", "AMQP_URL_FILE", "AMQP_TLS_CA_FILE", "AMQP_HEARTBEAT", "RPC_QUEUE_TYPE", "RPC_BATCH", "RPC_CONTROL"} {
			var s struct {
				AMQP
				Queue
			}
			isolate(t, &s)
			t.Setenv(name, value)
			var faults Faults
			for _, one := range settings(&s) {
				one.load(&faults)
			}
			s.AMQP.Validate(&faults)
			s.Queue.Validate(&faults)
			if err := faults.Err(); err != nil {
				if strings.Contains(err.Error(), marker) {
					t.Errorf("%s=%q is shown: %v", name, value, err)
				}
				continue
			}
			shown := fmt.Sprint(Describe(&s), fmt.Sprintf("%v %+v %#v", s.AMQP, s.AMQP, s.AMQP))
			for entry := range strings.SplitSeq(value, ",") {
				u, err := url.Parse(strings.TrimSpace(entry))
				if err == nil && (u.User != nil && strings.Contains(u.User.Username(), marker) || strings.Contains(u.Hostname(), marker)) {
					shown = "" // indistinguishable from a name
				}
			}
			if strings.Contains(shown, marker) {
				t.Errorf("%s=%q is shown: %s", name, value, shown)
			}
		}
	})
}
