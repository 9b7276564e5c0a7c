// A native program, for the other containers of a pod:
// http_native PORT            answers every request
// http_native ADDRESS PORT    asks for /content, and prints the answer's body
#ifdef __wasm__
int main(void) { return 64; }
#else
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int serve(struct sockaddr_in *address) {
    static const char answer[] =
        "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nfrom native\n";
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)address, sizeof *address) || listen(listener, 16)) return 1;
    for (;;) {
        char request[4096] = "";
        size_t size = 0;
        int fd = accept(listener, NULL, NULL);
        while (fd >= 0 && size < sizeof request - 1 && !strstr(request, "\r\n\r\n")) {
            ssize_t got = recv(fd, request + size, sizeof request - 1 - size, 0);
            if (got <= 0) break;
            size += got;
        }
        send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
        close(fd);
    }
}

static int ask(struct sockaddr_in *address) {
    static const char request[] = "GET /content HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
    struct timespec pause = {0, 50000000};
    char answer[8192] = "", *body;
    size_t size = 0;
    for (int tries = 0;; tries++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)address, sizeof *address) == 0) {
            send(fd, request, sizeof request - 1, MSG_NOSIGNAL);
            for (ssize_t got; (got = recv(fd, answer + size, sizeof answer - 1 - size, 0)) > 0;)
                size += got;
            break;
        }
        close(fd);
        if (tries == 200) return 1;
        nanosleep(&pause, NULL);
    }
    if (!(body = strstr(answer, "\r\n\r\n"))) return 2;
    fputs(body + 4, stdout);
    return 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (argc < 2) return 64;
    address.sin_port = htons(atoi(argv[argc - 1]));
    if (argc == 2) return serve(&address);
    return inet_pton(AF_INET, argv[1], &address.sin_addr) == 1 ? ask(&address) : 64;
}
#endif
