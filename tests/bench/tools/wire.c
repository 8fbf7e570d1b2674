#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_EVENTS = 512 };

static struct sockaddr_in server = { .sin_family = AF_INET };
static SSL_CTX *ctx;
static int ep;

void wire_init(void)
{
	server.sin_port = htons(options.port);
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ep = epoll_create1(0);
	if (!options.tls)
		return;
	ctx = SSL_CTX_new(TLS_client_method());
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
	SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
}

static void watch(int fd, void *what, unsigned events, int op)
{
	struct epoll_event e = { .events = events, .data.ptr = what };

	epoll_ctl(ep, op, fd, &e);
}

void wire_watch_stdin(void)
{
	watch(0, NULL, EPOLLIN, EPOLL_CTL_ADD);
}

void wire_connect(struct conn *c)
{
	int one = 1;

	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (c->fd < 0) {
		perror("load: socket");
		exit(1);
	}
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	alive++;
	if (connect(c->fd, (void *)&server, sizeof server) && errno != EINPROGRESS) {
		session_lost(c, "cannot connect");
		return;
	}
	if (options.tls) {
		c->ssl = SSL_new(ctx);
		SSL_set_fd(c->ssl, c->fd);
		SSL_set_connect_state(c->ssl);
	}
	watch(c->fd, c, options.tls ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_ADD);
}

void wire_send(struct conn *c, const char *b, int n)
{
	int sent = c->ssl ? SSL_write(c->ssl, b, n) : (int)send(c->fd, b, n, MSG_NOSIGNAL);

	if (sent != n)
		fprintf(stderr, "load: short write, %d of %d\n", sent, n);
}

void wire_pause(struct conn *c, int paused)
{
	watch(c->fd, c, paused ? 0 : EPOLLIN, EPOLL_CTL_MOD);
}

void wire_close(struct conn *c)
{
	SSL_free(c->ssl);
	c->ssl = NULL;
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	alive--;
}

/* Returns 1 when the handshake is complete. */
static int handshake(struct conn *c)
{
	int r = SSL_do_handshake(c->ssl), error;

	if (r == 1) {
		c->handshaken = 1;
		watch(c->fd, c, EPOLLIN, EPOLL_CTL_MOD);
		return 1;
	}
	error = SSL_get_error(c->ssl, r);
	if (error == SSL_ERROR_WANT_READ) {
		watch(c->fd, c, EPOLLIN, EPOLL_CTL_MOD);
	} else if (error != SSL_ERROR_WANT_WRITE) {
		ERR_print_errors_fp(stderr);
		session_lost(c, "handshake failed");
	}
	return 0;
}

static void on_event(struct conn *c)
{
	static char b[1 << 18];
	int fd = c->fd, n;
	SSL *ssl = c->ssl;

	if (fd < 0)
		return;                       /* closed by an earlier event of this turn */
	if (!options.tls) {
		n = recv(fd, b, sizeof b, 0);
		if (n > 0)
			session_receive(c, b, n);
		else if (n == 0)
			session_lost(c, "connection closed");
		else if (errno != EAGAIN && errno != EINTR)
			session_lost(c, "recv failed");
		return;
	}
	if (!c->handshaken && !handshake(c))
		return;
	do {
		n = SSL_read(ssl, b, sizeof b);
		if (n <= 0) {
			int error = SSL_get_error(ssl, n);

			if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
				session_lost(c, "TLS read failed");
			return;
		}
		session_receive(c, b, n);
	} while (c->fd == fd && c->ssl == ssl);
}

int wire_wait(void)
{
	struct epoll_event ev[MAX_EVENTS];
	int n = epoll_wait(ep, ev, MAX_EVENTS, 200), open = 1;

	for (int i = 0; i < n; i++) {
		char c;

		if (ev[i].data.ptr)
			on_event(ev[i].data.ptr);
		else if (read(0, &c, 1) <= 0)
			open = 0;
	}
	return open;
}
