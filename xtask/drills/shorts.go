// Short connections at a rate, to many addresses in turn.
//
//	shorts serve PORT
//	shorts dial PORT RATE ADDRESS...
//
// Each connects, sends a line, reads one, and closes. "dial" prints what failed, and a count.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

func serve(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		panic(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer conn.Close()
			reader := bufio.NewReader(conn)
			for {
				if _, err := reader.ReadString('\n'); err != nil {
					return
				}
				fmt.Fprintln(conn, "ok")
			}
		}()
	}
}

func ask(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(conn, "please")
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2])
	}
	rate, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	addresses := os.Args[4:]
	number := 0
	for range time.Tick(time.Second / time.Duration(rate)) {
		go func(address string) {
			if err := ask(address); err != nil {
				fmt.Println("failed", err)
			}
		}(net.JoinHostPort(addresses[number%len(addresses)], os.Args[2]))
		number++
		if number%1000 == 0 {
			fmt.Println("answers", number)
		}
	}
}
