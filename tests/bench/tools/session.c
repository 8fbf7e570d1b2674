#include "load.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Only churn has steps after the login; in the other modes a session stays at WORK until it says QUIT. */
enum step { GREETING, USER, PASS, STAT, LIST, FIRST_RETR, WORK = STAT, LEAVING = 1 << 20 };
enum { MAX_SHOWN = 5, MAX_RESTARTS = 1000 };

static int done_by_churn(void)
{
	return stopping || (options.sessions && results.sessions + results.lost + alive >= options.sessions);
}

void session_start(struct conn *c)
{
	memset(c, 0, sizeof *c);
	c->pending = 1;                       /* the greeting */
	c->start = now();
	wire_connect(c);
}

void session_lost(struct conn *c, const char *what)
{
	static int shown;

	if (shown++ < MAX_SHOWN)
		fprintf(stderr, "load: %s at step %d: %s\n", what, c->step, strerror(errno));
	results.lost++;
	wire_close(c);
	if (options.mode == CHURN && results.lost < MAX_RESTARTS && !done_by_churn())
		session_start(c);
}

static void altered(struct conn *c)
{
	results.altered++;
	errno = 0;
	session_lost(c, "octets that the server did not send");
}

/* ---- commands ---- */

static int apop(const struct conn *c, char *b, size_t room)
{
	const char *from = memchr(c->line, '<', c->line_len);
	const char *to = from ? memchr(from, '>', c->line + c->line_len - from) : NULL;
	char secret[1024];
	unsigned char digest[16];
	int n;

	if (!to)
		return 0;
	n = snprintf(secret, sizeof secret, "%.*s%s", (int)(to + 1 - from), from, options.password);
	EVP_Digest(secret, n, digest, NULL, EVP_md5(), NULL);
	n = snprintf(b, room, "APOP %s ", options.user);
	for (int i = 0; i < 16; i++)
		n += snprintf(b + n, room - n, "%02x", digest[i]);
	return n + snprintf(b + n, room - n, "\r\n");
}

static int plain(char *b, size_t room)
{
	char message[512], base64[1024];
	int n = snprintf(message, sizeof message, "%c%s%c%s", 0, options.user, 0, options.password);

	EVP_EncodeBlock((unsigned char *)base64, (unsigned char *)message, n);
	return snprintf(b, room, "AUTH PLAIN %s\r\n", base64);
}

/* The command of this step into `b`, and which reply it must get. Returns its length. */
static int command(struct conn *c, char *b, size_t room)
{
	int n = 0;

	if (c->step == USER)
		return snprintf(b, room, "USER %s\r\n", options.user);
	if (c->step == PASS && options.login == BY_APOP)
		return apop(c, b, room);
	if (c->step == PASS && options.login == BY_PLAIN)
		return plain(b, room);
	if (c->step == PASS)
		return snprintf(b, room, "PASS %s\r\n", options.password);
	if (c->step == LEAVING || (options.mode == CHURN && c->step >= FIRST_RETR + options.messages))
		return snprintf(b, room, "QUIT\r\n");
	if (options.mode == NOOP)
		return snprintf(b, room, "NOOP\r\n");
	if (options.mode == CHURN && c->step == STAT) {
		c->expected = &maildrop->stat;
		return snprintf(b, room, "STAT\r\n");
	}
	if (options.mode == CHURN && c->step == LIST) {
		c->expected = &maildrop->list;
		return snprintf(b, room, "LIST\r\n");
	}
	if (options.mode == CHURN) {
		c->expected = &maildrop->retr[c->step - FIRST_RETR + 1];
		return snprintf(b, room, "RETR %d\r\n", c->step - FIRST_RETR + 1);
	}
	c->expected = &maildrop->retr[1];
	c->pending = options.mode == PIPE ? options.depth : 1;
	for (int i = 1; i <= c->pending; i++)
		n += snprintf(b + n, room - n, "RETR %d\r\n", i);
	return n;
}

static void send_command(struct conn *c)
{
	char b[8192];
	int n;

	c->pending = 1;
	c->expected = NULL;
	c->seen = 0;
	n = command(c, b, sizeof b);
	c->line_len = 0;
	if (options.mode != CHURN)
		c->start = now();
	if (n)
		wire_send(c, b, n);
	else
		session_lost(c, "no timestamp for APOP");
}

void session_work(struct conn *c)
{
	send_command(c);
	if (options.mode == STUCK)
		wire_pause(c, 1);
}

void session_finish(struct conn *c)
{
	if (options.mode == STUCK) {
		wire_pause(c, 0);
	} else {
		c->step = LEAVING;
		send_command(c);
	}
}

/* ---- replies ---- */

static void add_latency(double seconds)
{
	struct results *r = &results;

	if (r->latencies == r->latency_cap) {
		r->latency_cap = r->latency_cap ? r->latency_cap * 2 : 65536;
		r->latency = realloc(r->latency, r->latency_cap * sizeof *r->latency);
	}
	r->latency[r->latencies++] = seconds;
}

static void session_ended(struct conn *c)
{
	results.sessions++;
	wire_close(c);
	if (options.mode == CHURN) {
		add_latency(now() - c->start);
		if (!done_by_churn())
			session_start(c);
	}
}

/* The whole reply (pipelined: all replies) to the command of this step has come. */
static void reply_done(struct conn *c)
{
	if (c->step == LEAVING || (options.mode == CHURN && c->step >= FIRST_RETR + options.messages)) {
		session_ended(c);
	} else if (c->step < PASS || options.mode == CHURN) {
		c->step = c->step == GREETING && options.login != BY_USER ? PASS : c->step + 1;
		send_command(c);
	} else if (c->step == PASS) {         /* logged in: wait for the others */
		c->step = WORK;
		c->pending = 0;
		ready++;
	} else if (options.mode == STUCK) {
		results.ops++;
		c->step = LEAVING;
		send_command(c);
	} else {
		double t = now();

		if (t >= measure_from) {
			results.ops++;
			add_latency(t - c->start);
		}
		c->pending = 0;
		if (!stopping)
			send_command(c);
	}
}

/* One reply is as expected. Returns 1 if more are due. */
static int next_reply(struct conn *c)
{
	c->seen = 0;
	if (--c->pending == 0)
		return 0;
	c->expected++;                        /* pipelined: RETR 1, 2, 3 ... */
	return 1;
}

static void take_line(struct conn *c, const char *b, int n)
{
	const char *end = memchr(b, '\n', n);

	if (c->line_len + n > (int)sizeof c->line || (end && end != b + n - 1)) {
		altered(c);
		return;
	}
	memcpy(c->line + c->line_len, b, n);
	c->line_len += n;
	if (end)
		reply_done(c);
}

void session_receive(struct conn *c, const char *b, int n)
{
	if (options.mode == CHURN || (c->expected && now() >= measure_from))
		results.bytes += n;
	if (!c->pending) {
		altered(c);                   /* octets that answer nothing */
		return;
	}
	if (!c->seen && !c->line_len && *b != '+') {
		fprintf(stderr, "load: reply %.*s\n", n < 80 ? n : 80, b);
		session_lost(c, "unexpected reply");
		return;
	}
	if (!c->expected) {
		take_line(c, b, n);
		return;
	}
	while (n > 0) {
		size_t left = c->expected->n - c->seen;
		int part = (size_t)n < left ? n : (int)left;

		if (memcmp(c->expected->p + c->seen, b, part)) {
			altered(c);
			return;
		}
		c->seen += part;
		b += part;
		n -= part;
		if (c->seen == c->expected->n && !next_reply(c)) {
			if (n > 0)
				altered(c);
			else
				reply_done(c);
			return;
		}
	}
}
