// An HTTP server whose handlers query a database over a pool.
//
//	reports ADDRESS DSN MAX_OPEN IDLE_SECONDS forgets|closes
//
// "forgets": the handler of /report reads the first row and returns without closing the rows, so its connection never
// comes back to the pool. IDLE_SECONDS: the pool closes connections that have been idle for so long, 0 for never.
package main

import (
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	_ "github.com/go-sql-driver/mysql"
)

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	db, err := sql.Open("mysql", os.Args[2])
	if err != nil {
		panic(err)
	}
	db.SetMaxOpenConns(number(os.Args[3]))
	db.SetMaxIdleConns(number(os.Args[3]))
	db.SetConnMaxIdleTime(time.Duration(number(os.Args[4])) * time.Second)
	forgets := os.Args[5] == "forgets"

	// Two rows, so that a result of which one is read keeps its connection.
	http.HandleFunc("/report", func(w http.ResponseWriter, r *http.Request) {
		rows, err := db.Query("SELECT SLEEP(?) UNION ALL SELECT 1", r.URL.Query().Get("sleep"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		rows.Next()
		if !forgets {
			rows.Close()
		}
		fmt.Fprintln(w, "ok")
	})
	http.HandleFunc("/in-use", func(w http.ResponseWriter, r *http.Request) {
		stats := db.Stats()
		fmt.Fprintln(w, stats.InUse, stats.Idle, stats.WaitCount)
	})
	panic(http.ListenAndServe(os.Args[1], nil))
}
