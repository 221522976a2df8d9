// An HTTP server that has at most LIMIT connections at a time, as golang.org/x/net/netutil does it: it does not accept
// any more until one is closed. Connections that are idle count. Asked by SIGTERM it ends as in a rollout: it closes its
// listener, lets requests finish, and closes its connections.
//
//	limited ADDRESS LIMIT
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"

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
	server := &http.Server{}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go server.Serve(netutil.LimitListener(listener, limit))
	<-ended
	server.Shutdown(context.Background())
}
