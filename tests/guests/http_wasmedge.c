// http_wasmedge PORT [N]:     answers N requests (default: without end) on a socket of its own
// http_wasmedge HOST PORT /PATH:  asks, and prints the answer
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "wasmedge.h"

static int fail(const char *what, uint32_t error) {
    printf("%s: error %u\n", what, error);
    return 1;
}

static int serve(uint32_t port, long left) {
    uint8_t any[4] = {0};
    struct address address = {any, sizeof any};
    uint32_t listener, family, one = 1, error;
    if ((error = sock_open(INET4, STREAM, &listener))) return fail("open", error);
    if ((error = sock_setsockopt(listener, 0, 0, &one, sizeof one))) return fail("option", error);
    if ((error = sock_bind(listener, &address, port))) return fail("bind", error);
    if ((error = sock_listen(listener, 16))) return fail("listen", error);
    if ((error = sock_getlocaladdr(listener, &address, &family, &port))) return fail("name", error);
    printf("listening on %u.%u.%u.%u:%u\n", any[0], any[1], any[2], any[3], port);
    fflush(stdout);
    for (; left != 0; left--) {
        static const char answer[] =
            "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\nfrom WasmEdge\n";
        char request[4096] = {0};
        struct storage storage;
        struct address peer = {&storage, sizeof storage};
        struct vector vector = {request, sizeof request - 1};
        uint32_t fd, size, flags;
        if ((error = sock_accept(listener, &fd))) return fail("accept", error);
        if ((error = sock_getpeeraddr_v2(fd, &peer, &port))) return fail("peer", error);
        if ((error = sock_recv(fd, &vector, 1, 0, &size, &flags))) return fail("recv", error);
        vector = (struct vector){(void *)answer, sizeof answer - 1};
        if ((error = sock_send(fd, &vector, 1, 0, &size))) return fail("send", error);
        printf("family %u port %u: %.*s\n", storage.family, port, (int)strcspn(request, "\r"),
               request);
        fflush(stdout);
        sock_shutdown(fd, 3);
        close(fd);
    }
    return 0;
}

static int ask(const char *host, const char *port, const char *path) {
    uint8_t data[26];
    struct sockaddr_info sockaddr = {.size = 14, .data = data};
    struct address_info info = {.address = &sockaddr}, hints = {.family = INET4, .type = STREAM};
    struct address_info *result = &info;
    uint32_t found, fd, size, flags, error;
    // With the NULs, as WasmEdge's library has it.
    error = sock_getaddrinfo(host, strlen(host) + 1, port, strlen(port) + 1, &hints, &result, 1,
                             &found);
    if (error || !found) return fail("resolve", error);
    struct address address = {data + 2, 4};
    char text[4096];
    snprintf(text, sizeof text, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, host);
    struct vector vector = {text, strlen(text)};
    if ((error = sock_open(INET4, STREAM, &fd))) return fail("open", error);
    if ((error = sock_connect(fd, &address, data[0] << 8 | data[1]))) return fail("connect", error);
    if ((error = sock_send(fd, &vector, 1, 0, &size))) return fail("send", error);
    for (;;) {
        vector = (struct vector){text, sizeof text};
        if ((error = sock_recv(fd, &vector, 1, 0, &size, &flags))) return fail("recv", error);
        if (!size) return 0;
        fwrite(text, 1, size, stdout);
    }
}

int main(int argc, char **argv) {
    if (argc == 4) return ask(argv[1], argv[2], argv[3]);
    return argc > 1 ? serve(atoi(argv[1]), argc > 2 ? atol(argv[2]) : -1) : 2;
}
