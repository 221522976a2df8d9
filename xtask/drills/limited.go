// An HTTP server that has at most LIMIT connections at a time, as golang.org/x/net/netutil does it: it does not accept
// any more until one is closed. Connections that are idle count.
//
//	limited ADDRESS LIMIT
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"

	"golang.org/x/net/netutil"
)

func main() {
	limit, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	panic(http.Serve(netutil.LimitListener(listener, limit), nil))
}
