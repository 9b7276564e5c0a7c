// udp_echo N:  sends N datagrams back to where they came from, and prints a line for each.
#include <stdio.h>
#include <stdlib.h>

#include "wasmedge.h"

int main(int argc, char **argv) {
    struct storage storage = {.family = INET4, .address = {127, 0, 0, 1}};
    struct address address = {&storage, sizeof storage};
    uint8_t name[4];
    struct address local = {name, sizeof name};
    uint32_t fd, family, port, error;
    if ((error = sock_open(INET4, DATAGRAM, &fd))) return error;
    if ((error = sock_bind(fd, &address, 0))) return error;
    if ((error = sock_getlocaladdr(fd, &local, &family, &port))) return error;
    printf("port %u\n", port);
    fflush(stdout);
    for (long left = argc > 1 ? atol(argv[1]) : 1; left > 0; left--) {
        char data[2048];
        struct vector vector = {data, sizeof data};
        uint32_t size, flags;
        port = 0;
        error = sock_recv_from(fd, &vector, 1, &address, 0, &port, &size, &flags);
        if (error) return error;
        port = (port & 0xff) << 8 | port >> 8;  // this one comes in network byte order
        vector.size = size;
        if ((error = sock_send_to(fd, &vector, 1, &address, port, 0, &size))) return error;
        printf("%u bytes, port %u\n", size, port);
        fflush(stdout);
    }
    return 0;
}
