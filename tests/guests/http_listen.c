// http_listen [N]:  answers N requests (default: without end), and prints a line for each, on the
// sockets it was given: LISTEN_FDS of them, from 3. What is asked for is a file's content.
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void send_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, size, 0);
        if (sent < 0) return;
        data += sent;
        size -= sent;
    }
}

static void answer(int fd) {
    char request[4096] = "", path[256], head[128];
    size_t size = 0;
    ssize_t got;
    while ((got = recv(fd, request + size, sizeof request - 1 - size, 0)) > 0) {
        size += got;
        request[size] = 0;
        if (strstr(request, "\r\n\r\n")) break;
    }
    if (sscanf(request, "GET %255s", path) != 1) return;
    FILE *file = fopen(path, "r");
    char body[4096];
    size_t length = file ? fread(body, 1, sizeof body, file) : 0;
    snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
             file ? "200 OK" : "404 Not Found", length);
    if (file) fclose(file);
    send_all(fd, head, strlen(head));
    send_all(fd, body, length);
    printf("%s %s\n", path, file ? "found" : "not found");
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *given = getenv("LISTEN_FDS");
    int count = given ? atoi(given) : 0;
    struct pollfd listeners[8];
    if (count < 1 || count > 8) return 2;
    for (int i = 0; i < count; i++) listeners[i] = (struct pollfd){.fd = 3 + i, .events = POLLIN};
    printf("listening on %d\n", count);
    fflush(stdout);
    for (long left = argc > 1 ? atol(argv[1]) : -1; left != 0;) {
        if (poll(listeners, count, -1) < 0) return 3;
        for (int i = 0; i < count; i++) {
            if (!listeners[i].revents) continue;
            int fd = accept(listeners[i].fd, NULL, NULL);
            if (fd < 0) return 4;
            answer(fd);
            close(fd);
            left--;
        }
    }
    return 0;
}
