// Package terminaltest opens pseudo-terminals for tests.
package terminaltest
