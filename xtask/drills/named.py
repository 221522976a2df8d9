"""The name of a process, as ss and tcpwatch show it."""


def named(name):
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)
