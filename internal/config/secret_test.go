package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestSecretString(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"amqp://host/", "amqp://host/"},
		{"amqp://user:hunter2@host:5672/v", "amqp://user:xxxxx@host:5672/v"},
		{"amqp://u:hunter2@a/, amqps://u:hunter2@b/", "amqp://u:xxxxx@a/,amqps://u:xxxxx@b/"},
		{"amqp://u:hunter%zz2@a/", "xxxxx"},
		{"u:hunter2@a", "xxxxx"},
		{"amqp://u:hun,ter2@a/", "xxxxx,xxxxx"},
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
		if !strings.Contains(text, "user:xxxxx@host") {
			t.Errorf("%s does not show the URL: %s", how, text)
		}
	}
	if got := a.URL.Reveal(); got != "amqp://user:hunter2@host/" {
		t.Errorf("Reveal returned %q", got)
	}
}
