// An HTTP server whose handlers take a connection from a pool of five to redis.
//
//	orders ADDRESS REDIS IDLE_SECONDS forgets|returns
//
// IDLE_SECONDS: the pool closes connections that have been idle for so long before it would use them, 0 for never.
// "forgets": a handler that finds no such order returns without giving the connection back. After five of these every
// handler waits for the pool, without a time-out, and does not see that its client has gone.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/gomodule/redigo/redis"
)

func main() {
	forgets := os.Args[4] == "forgets"
	idle, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	pool := &redis.Pool{
		MaxActive:   5,
		MaxIdle:     5,
		Wait:        true,
		IdleTimeout: time.Duration(idle) * time.Second,
		Dial:        func() (redis.Conn, error) { return redis.Dial("tcp", os.Args[2]) },
	}
	http.HandleFunc("/order", func(w http.ResponseWriter, r *http.Request) {
		conn := pool.Get()
		count, err := redis.Int(conn.Do("INCR", "shop:orders:asked:since:midnight"))
		if err == nil && r.URL.Query().Get("id") == "unknown" {
			if !forgets {
				conn.Close()
			}
			http.Error(w, "no such order", http.StatusNotFound)
			return
		}
		conn.Close()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "order", count)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Args[1], nil))
	os.Exit(1)
}
