// poll_server:  sends back whatever any of its connections sends, to each in its own time, until
// somebody sends a line `end`. The listener is descriptor 3.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 64

static struct pollfd watched[MOST] = {{.fd = 3, .events = POLLIN}};
static int count = 1;

static void welcome(void) {
    for (;;) {
        int fd = accept4(3, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno != EAGAIN) perror("accept");
            return;
        }
        if (!(fcntl(fd, F_GETFL) & O_NONBLOCK)) puts("it would block");
        watched[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
        printf("%d connected\n", count - 1);
    }
}

int main(void) {
    if (fcntl(3, F_SETFL, fcntl(3, F_GETFL) | O_NONBLOCK)) return 2;
    puts("ready");
    for (;;) {
        fflush(stdout);
        if (poll(watched, count, 10000) <= 0) return 3;
        for (int i = count - 1; i > 0; i--) {
            if (!watched[i].revents) continue;
            char data[1024];
            ssize_t got = read(watched[i].fd, data, sizeof data);
            if (got > 0 && !strncmp(data, "end\n", 4)) return 0;
            if (got > 0 && write(watched[i].fd, data, got) == got) continue;
            if (got < 0 && errno == EAGAIN) continue;
            close(watched[i].fd);
            watched[i] = watched[--count];
            printf("%d connected\n", count - 1);
        }
        if (watched[0].revents && count < MOST) welcome();
    }
}
