/* The launcher's fast path: what happens in every life of a container, without an interpreter. Runs in: launcher.
 *
 * `start` hands its request to a zygote that listens; `delete` prints the farewell that an orderly end has left in the
 * bundle. For all else, and wherever something is not as usual, it becomes the launcher in Python (main.py), which
 * knows the rest. BUILD and PYTHON_LAUNCHER come from scripts/install-launcher; names, limits and forms from main.py.
 *
 * Without a C library: before main, glibc asks the processor what it can, a millisecond in a virtual machine.
 */

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

enum { STDIN_LIMIT = 10 << 20, FIELDS_LIMIT = 1 << 20, CHUNK = 1 << 16 };

static char request[FIELDS_LIMIT + STDIN_LIMIT + 2 * CHUNK], answer[CHUNK], **environment;

/* A system call, of which the result is a negated errno if it fails; and where the kernel begins. */
#if defined __x86_64__
static long call(long number, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return number;
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall run");
#elif defined __aarch64__
static long call(long number, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = number, x3 __asm__("x3") = d;
    register long x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
__asm__(".globl _start\n_start: mov x0, sp\nbl run");
#endif
#define CALL(name, a, b, c, d) call(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d))

/* What follows a prefix of a text; null if it begins otherwise. */
static const char *after(const char *prefix, const char *text) {
    for (; *prefix; prefix++, text++)
        if (*prefix != *text)
            return 0;
    return text;
}

static const char *variable(const char *name, const char *otherwise) {
    for (char **entry = environment; *entry; entry++) {
        const char *rest = after(name, *entry);
        if (rest && *rest == '=')
            return rest + 1;
    }
    return otherwise;
}

/* Copies a text and its NUL to `at`; returns where that NUL is, or `end` if there is no room. */
static char *put(char *at, char *end, const char *text) {
    while (at < end && (*at = *text++))
        at++;
    return at;
}

static int write_all(int fd, const char *data, long size) {
    for (long count; size > 0; data += count, size -= count)
        if ((count = CALL(write, fd, data, size, 0)) < 0)
            return 0;
    return 1;
}

/* Whether a file is ours, of this type, and without these bits of its mode. */
static int is_ours(const char *path, unsigned type, unsigned forbidden) {
    struct stat status;
    return CALL(newfstatat, AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
           status.st_uid == CALL(geteuid, 0, 0, 0, 0) && (status.st_mode & (S_IFMT | forbidden)) == type;
}

/* A connection to the zygote of this build and these namespaces; negative if there is none. */
static long zygote(void) {
    static const char *const names[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    static struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *path = address.sun_path, *end = path + sizeof address.sun_path, hexadecimal[17] = "";
    const char *directory = variable("PYWASM_RUN", "/run/pywasm");
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a, of inode numbers */
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        struct stat status;
        put(put(path, end, "/proc/self/ns/"), end, names[i]);
        if (CALL(newfstatat, AT_FDCWD, path, &status, 0) < 0)
            return -1;
        hash = (hash ^ status.st_ino) * UINT64_C(0x100000001b3);
    }
    for (int i = 15; i >= 0; i--, hash >>= 4)
        hexadecimal[i] = "0123456789abcdef"[hash & 15];
    if (put(put(put(put(path, end, directory), end, "/zygote-" BUILD "-"), end, hexadecimal), end, ".sock") == end ||
        !is_ours(directory, S_IFDIR, 077) || !is_ours(path, S_IFSOCK, 0))
        return -1;
    long connection = CALL(socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, 0);
    /* The first three are taken, unless one of them is closed: that is not ours to fill. */
    return connection < 3 || CALL(connect, connection, &address, sizeof address, 0) < 0 ? -1 : connection;
}

/* Asks the zygote, prints its answer and ends; returns if there is none, with the same standard input. */
static void start(long argc, char **argv) {
    static const char *const forwarded[] = {"TTRPC_ADDRESS", "MAX_SHIM_VERSION", "PYWASM_STATE", "PYWASM_CONFIG"};
    char number[] = {'0' + (argc - 1) / 10, '0' + (argc - 1) % 10, 0}, *end = request + FIELDS_LIMIT;
    long connection, size = CALL(getcwd, request, FIELDS_LIMIT, 0, 0);
    char *at = request + size;
    if (size < 0 || *request != '/' || argc > 100)
        return;
    for (unsigned i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
        at = put(at, end, variable(forwarded[i], "")) + 1;
    at = put(at, end, number + (argc <= 10)) + 1;
    for (long i = 1; i < argc; i++)
        at = put(at, end, argv[i]) + 1;
    if (at > end || (connection = zygote()) < 0) /* last: it forks for each connection */
        return;
    char *input = at;
    while (at - input <= STDIN_LIMIT && (size = CALL(read, 0, at, CHUNK, 0)) > 0)
        at += size;
    if (write_all(connection, request, at - request) && CALL(shutdown, connection, SHUT_WR, 0, 0) == 0 &&
        (size = CALL(read, connection, answer, CHUNK, 0)) > 0) {
        int status = (unsigned char)answer[0], stream = status ? 2 : 1, written = write_all(stream, answer + 1, size - 1);
        while (written && (size = CALL(read, connection, answer, CHUNK, 0)) > 0)
            written = write_all(stream, answer, size);
        CALL(exit_group, written ? status : 1, 0, 0, 0);
    }
    long again = CALL(memfd_create, "stdin", 0, 0, 0);
    if (!write_all(again, input, at - input) || CALL(lseek, again, 0, 0, 0) < 0 || CALL(dup3, again, 0, 0, 0) < 0)
        CALL(exit_group, 1, 0, 0, 0);
}

void run(long *stack) {
    static long ignore[8] = {1}; /* SIG_IGN; the rest of struct sigaction is zero */
    long argc = *stack, size;
    char **argv = (char **)stack + 1;
    const char *starts = after("start", argv[argc - 1]), *deletes = after("delete", argv[argc - 1]);
    environment = argv + argc + 1;
    CALL(rt_sigaction, SIGPIPE, ignore, 0, 8);
    if (starts && !*starts)
        start(argc, argv);
    if (deletes && !*deletes) {
        long left = CALL(openat, AT_FDCWD, "deleted", O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
        if ((size = CALL(read, left, answer, 4096, 0)) > 0)
            CALL(exit_group, !write_all(1, answer, size), 0, 0, 0);
    }
    CALL(execve, PYTHON_LAUNCHER, argv, environment, 0);
    CALL(exit_group, 127, 0, 0, 0);
}
