// Package hostile sends a server inputs meant to end, block or fill processes, for a
// configurable time. The server must survive with 256 MiB of memory, and another client must
// be served meanwhile. docs/reliability.md describes the usage.
package hostile
