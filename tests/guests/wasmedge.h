// The socket functions of WasmEdge, with the names and parameters that its guest libraries use.
#include <stdint.h>

#define WASMEDGE(name)                                                                     \
    __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) uint32_t

enum { INET4 = 1, INET6 = 2 };
enum { DATAGRAM = 1, STREAM = 2 };

struct address {
    void *buffer;
    uint32_t size;
};

struct storage {
    uint16_t family;
    uint8_t address[126];
};

struct vector {
    void *buffer;
    uint32_t size;
};

struct sockaddr_info {
    uint8_t family;
    uint32_t size;
    uint8_t *data;
};

struct address_info {
    uint16_t flags;
    uint8_t family, type;
    uint32_t protocol;
    uint32_t address_size;
    struct sockaddr_info *address;
    char *name;
    uint32_t name_size;
    struct address_info *next;
};

WASMEDGE(sock_open) sock_open(uint32_t family, uint32_t type, uint32_t *fd);
WASMEDGE(sock_bind) sock_bind(uint32_t fd, struct address *, uint32_t port);
WASMEDGE(sock_listen) sock_listen(uint32_t fd, uint32_t backlog);
WASMEDGE(sock_accept) sock_accept(uint32_t fd, uint32_t *accepted);
WASMEDGE(sock_connect) sock_connect(uint32_t fd, struct address *, uint32_t port);
WASMEDGE(sock_recv)
sock_recv(uint32_t fd, struct vector *, uint32_t n, uint32_t flags, uint32_t *size, uint32_t *out);
WASMEDGE(sock_recv_from)
sock_recv_from(uint32_t fd, struct vector *, uint32_t n, struct address *, uint32_t flags,
               uint32_t *port, uint32_t *size, uint32_t *out);
WASMEDGE(sock_send)
sock_send(uint32_t fd, struct vector *, uint32_t n, uint32_t flags, uint32_t *size);
WASMEDGE(sock_send_to)
sock_send_to(uint32_t fd, struct vector *, uint32_t n, struct address *, uint32_t port,
             uint32_t flags, uint32_t *size);
WASMEDGE(sock_shutdown) sock_shutdown(uint32_t fd, uint32_t how);
WASMEDGE(sock_getlocaladdr)
sock_getlocaladdr(uint32_t fd, struct address *, uint32_t *family, uint32_t *port);
WASMEDGE(sock_getpeeraddr_v2) sock_getpeeraddr_v2(uint32_t fd, struct address *, uint32_t *port);
WASMEDGE(sock_setsockopt)
sock_setsockopt(uint32_t fd, uint32_t level, uint32_t name, void *value, uint32_t size);
WASMEDGE(sock_getaddrinfo)
sock_getaddrinfo(const char *node, uint32_t node_size, const char *service, uint32_t service_size,
                 struct address_info *hints, struct address_info **result, uint32_t most,
                 uint32_t *found);
