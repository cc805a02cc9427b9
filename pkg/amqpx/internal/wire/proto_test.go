package wire

import (
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// protoFields returns the field numbers of each message in batch.proto.
func protoFields(t *testing.T, text string) map[string]map[string]int {
	t.Helper()
	messages := make(map[string]map[string]int)
	for _, m := range regexp.MustCompile(`(?s)message (\w+) \{(.*?)\}`).FindAllStringSubmatch(text, -1) {
		messages[m[1]] = make(map[string]int)
		for _, f := range regexp.MustCompile(`(\w+) = (\d+);`).FindAllStringSubmatch(m[2], -1) {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatal(err)
			}
			messages[m[1]][f[1]] = n
		}
	}
	return messages
}

func TestFieldNumbersAreThoseOfTheProtoFile(t *testing.T) {
	t.Parallel()
	compareFields(t, "batch.proto", map[string]map[string]int{
		"Requests":  {"requests": fieldRecord},
		"Responses": {"responses": fieldRecord, "server": responsesServer},
		"Header":    {"name": headerName, "value": headerValue, "binary": headerBinary},
		"Request": {
			"id": requestID, "method": requestMethod, "body": requestBody, "timeout_ms": requestTimeout, "message_id": requestMessageID,
			"idempotent": requestIdempotent, "resent": requestResent, "retry": requestRetry, "headers": requestHeader,
			"content_type": requestContentType, "content_encoding": requestEncoding, "unsampled": requestUnsampled, "times": requestTimes,
			"accept_encoding": requestAccept,
		},
		"Response": {
			"id": responseID, "body": responseBody, "code": responseCode, "ran": responseRan, "retry": responseRetry,
			"retry_after_ms": responseRetryAfter, "queue_us": responseQueueTime, "handler_us": responseHandler,
			"content_type": responseContentType, "content_encoding": responseEncoding, "headers": responseHeader,
			"trailers": responseTrailer, "details": responseDetail,
		},
	})
}

func TestFieldNumbersOfFrames(t *testing.T) {
	t.Parallel()
	compareFields(t, "frames.proto", map[string]map[string]int{
		"Frames":       {"frames": fieldRecord},
		"StreamHeader": {"name": streamHeaderName, "value": streamHeaderValue, "binary": streamHeaderBinary},
		"Frame": {
			"stream": frameStream, "seq": frameSeq, "items": frameItems, "half_close": frameHalfClose, "credit_items": frameCreditItems,
			"credit_bytes": frameCreditBytes, "taken": frameTaken, "headers": frameHeaders, "accept": frameAccept, "end": frameEndField,
			"reset": frameReset, "ping": framePing, "pong": framePong, "open": frameOpen, "headers_done": frameHeadersDone,
			"timeout_ms": frameTimeout, "content_type": frameContentType, "content_encoding": frameContentEncoding,
			"blocked": frameBlocked,
		},
		"End": {
			"code": endCode, "message": endMessage, "details": endDetails, "trailers": endTrailers, "items": endItems, "taken": endTaken,
			"ran": endRan, "retry_after_ms": endRetryAfter,
		},
	})
}

// compareFields compares the messages of a file with the field numbers of the code.
func compareFields(t *testing.T, name string, want map[string]map[string]int) {
	t.Helper()
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got := protoFields(t, string(file))
	wantSame(t, "messages", len(got), len(want))
	for name, fields := range want {
		if !maps.Equal(got[name], fields) {
			t.Errorf("message %s: the file has %v, the code %v", name, got[name], fields)
		}
	}
}

func TestProtoFileIsInTheDocumentation(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"batch.proto", "frames.proto"} {
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, messages, ok := strings.Cut(string(file), "\n\n")
		if !ok {
			t.Fatal("no comment before the messages")
		}
		if !strings.Contains(string(page), "```proto\n"+messages+"```\n") {
			t.Errorf("docs/protocol.md does not have the messages of %s", name)
		}
	}
}
