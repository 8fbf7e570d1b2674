/* Synthetic POP3 server for benchmarks: one thread, epoll, every reply rendered once at start.
 *
 * usage: backend POP3_PORT HTTP_PORT [UNSENT]
 *
 * UNSENT bounds what each client who does not read holds of the kernel's memory, which it shares with the proxy's.
 *
 * Any password is right; maildrop.h says which user has what.
 * Logins: USER/PASS, APOP, AUTH (of AUTH PLAIN the name is decoded, of the others it is not).
 * HTTP_PORT answers any request with nginx auth_http headers that point at POP3_PORT.
 */
#define _GNU_SOURCE
#include "maildrop.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_LINE = 1024, MAX_EVENTS = 512, MAX_IOV = 256, MAX_QUEUE = 4096 };
enum kind { POP_LISTENER, HTTP_LISTENER, POP, HTTP };

struct conn {
	int fd, logged_in, closing, in_auth, want_out;
	enum kind kind;
	const struct drop *drop;
	char in[MAX_LINE];               /* an unfinished line */
	int in_len;
	struct reply *queue;             /* replies not yet sent: [head, tail) */
	int head, tail, cap;
};

static struct reply OK, BYE, ERR, CAPA, HELLO, PLUS, LOGGED_IN, AUTH_HTTP;
static int ep;
static int unsent;                       /* octets that the kernel takes for a client who does not read; 0: as it likes */

/* The drop named in base64 of "authzid NUL authcid NUL password". */
static const struct drop *drop_of_plain(const char *base64)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char out[MAX_LINE];
	int n = 0, bits = 0;
	unsigned acc = 0;
	const char *d;

	for (; *base64 && (d = strchr(digits, *base64)) && n < MAX_LINE - 1; base64++) {
		acc = acc << 6 | (unsigned)(d - digits);
		if ((bits += 6) >= 8)
			out[n++] = acc >> (bits -= 8);
	}
	out[n] = 0;
	return drop_of(*out || n < 2 ? out : out + 1);
}

/* ---- connections ---- */

static void watch(struct conn *c, unsigned events, int op)
{
	struct epoll_event e = { .events = events, .data.ptr = c };

	epoll_ctl(ep, op, c->fd, &e);
}

static void drop_conn(struct conn *c)
{
	close(c->fd);
	free(c->queue);
	free(c);
}

static void push(struct conn *c, struct reply r)
{
	if (c->tail == c->cap && c->head > 0) {
		memmove(c->queue, c->queue + c->head, (c->tail - c->head) * sizeof r);
		c->tail -= c->head;
		c->head = 0;
	}
	if (c->tail == c->cap) {
		c->cap = c->cap ? c->cap * 2 : 8;
		c->queue = realloc(c->queue, c->cap * sizeof r);
	}
	c->queue[c->tail++] = r;
}

/* Send what the socket takes.  Returns 0 when the connection is gone. */
static int flush(struct conn *c)
{
	while (c->head < c->tail) {
		struct iovec v[MAX_IOV];
		int n = 0;
		ssize_t sent;

		for (int i = c->head; i < c->tail && n < MAX_IOV; i++, n++)
			v[n] = (struct iovec){ (void *)c->queue[i].p, c->queue[i].n };
		sent = writev(c->fd, v, n);
		if (sent < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN) {
				drop_conn(c);
				return 0;
			}
			if (!c->want_out)
				watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
			c->want_out = 1;
			return 1;
		}
		while (sent > 0) {
			struct reply *r = &c->queue[c->head];

			if ((size_t)sent >= r->n) {
				sent -= r->n;
				c->head++;
			} else {
				r->p += sent;
				r->n -= sent;
				sent = 0;
			}
		}
	}
	c->head = c->tail = 0;
	if (c->closing) {
		drop_conn(c);
		return 0;
	}
	if (c->want_out)
		watch(c, EPOLLIN, EPOLL_CTL_MOD);
	c->want_out = 0;
	return 1;
}

/* ---- POP3 ---- */

#define VERB(a, b, c, d) ((unsigned)(a) << 24 | (b) << 16 | (c) << 8 | (d))

static void log_in(struct conn *c, const struct drop *d)
{
	c->drop = d;
	c->logged_in = 1;
	push(c, LOGGED_IN);
}

static void command(struct conn *c, char *line, int n)
{
	char *arg, *second;
	const struct drop *d = c->drop;
	int number, valid;
	unsigned verb;

	while (n && (line[n - 1] == '\r' || line[n - 1] == ' '))
		n--;
	line[n] = 0;
	if (c->in_auth) {
		c->in_auth = 0;
		log_in(c, drop_of_plain(line));
		return;
	}
	if ((arg = strchr(line, ' ')))
		arg++;
	verb = n < 3 ? 0 : VERB(line[0] & 0xdf, line[1] & 0xdf, line[2] & 0xdf, line[3] & 0xdf);
	switch (verb) {
	case VERB('U', 'S', 'E', 'R'):
		c->drop = drop_of(arg ? arg : "");
		push(c, OK);
		return;
	case VERB('P', 'A', 'S', 'S'):
		log_in(c, d ? d : drop_of(""));
		return;
	case VERB('A', 'P', 'O', 'P'):
		log_in(c, drop_of(arg ? arg : ""));
		return;
	case VERB('A', 'U', 'T', 'H'):
		second = arg ? strchr(arg, ' ') : NULL;
		if (second) {
			log_in(c, drop_of_plain(second + 1));
		} else {
			c->in_auth = 1;
			push(c, PLUS);
		}
		return;
	case VERB('C', 'A', 'P', 'A'):
		push(c, CAPA);
		return;
	case VERB('Q', 'U', 'I', 'T'):
		push(c, BYE);
		c->closing = 1;
		return;
	case VERB('N', 'O', 'O', 'P'):
	case VERB('R', 'S', 'E', 'T'):
		push(c, OK);
		return;
	}
	if (!c->logged_in) {
		push(c, ERR);
		return;
	}
	number = arg ? atoi(arg) : 0;
	valid = number >= 1 && number <= d->count;
	switch (verb) {
	case VERB('S', 'T', 'A', 'T'):
		push(c, d->stat);
		return;
	case VERB('L', 'I', 'S', 'T'):
		push(c, !arg ? d->list : valid ? d->list_one[number] : ERR);
		return;
	case VERB('U', 'I', 'D', 'L'):
		push(c, !arg ? d->uidl : valid ? d->uidl_one[number] : ERR);
		return;
	case VERB('R', 'E', 'T', 'R'):
		push(c, valid ? d->retr[number] : ERR);
		return;
	case VERB('D', 'E', 'L', 'E'):
		push(c, valid ? OK : ERR);
		return;
	}
	push(c, valid && !strncasecmp(line, "TOP ", 4) ? d->top[number] : ERR);
}

/* ---- events ---- */

static void on_accept(struct conn *listener)
{
	for (int i = 0; i < 64; i++) {
		int fd = accept4(listener->fd, 0, 0, SOCK_NONBLOCK), one = 1;
		struct conn *c;

		if (fd < 0)
			return;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		if (unsent)
			setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
		c = calloc(1, sizeof *c);
		c->fd = fd;
		c->kind = listener->kind == POP_LISTENER ? POP : HTTP;
		watch(c, EPOLLIN, EPOLL_CTL_ADD);
		if (c->kind == POP) {
			push(c, HELLO);
			flush(c);
		}
	}
}

static void on_read(struct conn *c)
{
	static char b[65536];
	int n, off = 0;
	char *end;

	memcpy(b, c->in, c->in_len);
	n = read(c->fd, b + c->in_len, sizeof b - c->in_len - 1);
	if (n <= 0) {
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
			drop_conn(c);
		return;
	}
	n += c->in_len;
	if (c->kind == HTTP) {
		b[n] = 0;
		if (strstr(b, "\r\n\r\n")) {
			push(c, AUTH_HTTP);
			c->closing = 1;
			flush(c);
			return;
		}
		c->in_len = n < MAX_LINE ? n : MAX_LINE - 1;
		memcpy(c->in, b, c->in_len);
		return;
	}
	while (off < n && !c->closing && (end = memchr(b + off, '\n', n - off))) {
		int len = end - (b + off);

		*end = 0;
		command(c, b + off, len);
		off += len + 1;
	}
	c->in_len = n - off < MAX_LINE ? n - off : 0;
	memcpy(c->in, b + off, c->in_len);
	flush(c);
}

static void add_listener(int port, enum kind kind)
{
	struct sockaddr_in a = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
	};
	struct conn *c = calloc(1, sizeof *c);
	int one = 1;

	c->kind = kind;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(c->fd, (void *)&a, sizeof a) || listen(c->fd, 4096)) {
		perror("backend: cannot listen");
		exit(1);
	}
	watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

int main(int argc, char **argv)
{
	struct epoll_event ev[MAX_EVENTS];
	struct rlimit files;
	char text[512];

	if (argc != 3 && argc != 4)
		return fprintf(stderr, "usage: backend POP3_PORT HTTP_PORT [UNSENT]\n"), 2;
	unsent = argc == 4 ? atoi(argv[3]) : 0;
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);

	make_drops();
	OK = reply("+OK\r\n");
	BYE = reply("+OK bye\r\n");
	ERR = reply("-ERR no\r\n");
	PLUS = reply("+ \r\n");
	LOGGED_IN = reply("+OK Logged in.\r\n");
	HELLO = reply("+OK synth ready <1896.697170952@synth.example>\r\n");
	CAPA = reply("+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nUSER\r\n"
		"SASL PLAIN\r\n.\r\n");
	snprintf(text, sizeof text, "HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\n"
		"Auth-Port: %d\r\n\r\n", atoi(argv[1]));
	AUTH_HTTP = reply(text);

	ep = epoll_create1(0);
	add_listener(atoi(argv[1]), POP_LISTENER);
	add_listener(atoi(argv[2]), HTTP_LISTENER);
	for (;;) {
		int n = epoll_wait(ep, ev, MAX_EVENTS, -1);

		for (int i = 0; i < n; i++) {
			struct conn *c = ev[i].data.ptr;

			if (c->kind == POP_LISTENER || c->kind == HTTP_LISTENER) {
				on_accept(c);
				continue;
			}
			if (ev[i].events & EPOLLOUT) {
				if (!flush(c) || c->head < c->tail || !(ev[i].events & EPOLLIN))
					continue;
			}
			if (c->tail - c->head <= MAX_QUEUE)
				on_read(c);
		}
	}
}
