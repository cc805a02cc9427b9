// Package hostile sends a server what ends, loops or fills processes, for as long as it is
// told, and proves that the server survives with 256 MiB of memory and that an ordinary
// client beside it is served. docs/reliability.md tells how to run it.
package hostile
