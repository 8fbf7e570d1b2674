/* The load generator's parts: load.c has options, ramp and results; session.c speaks POP3; wire.c connects. */
#ifndef LOAD_H
#define LOAD_H

#include "maildrop.h"

#include <openssl/ssl.h>

enum mode { CHURN, BULK, NOOP, PIPE, IDLE, STUCK, MODES };
enum login { BY_USER, BY_PLAIN, BY_APOP };

struct options {
	enum mode mode;
	enum login login;
	int port, tls, connections, messages, depth, ramp;
	double seconds;
	long sessions;                 /* churn: end after so many, 0 for no limit */
	const char *user, *password;
};

struct results {
	long sessions, ops, lost, altered;
	unsigned long long bytes;
	double *latency;               /* in seconds */
	long latencies, latency_cap;
};

struct conn {
	int fd, step, handshaken;
	SSL *ssl;
	char line[512];                /* of a reply that is one line of the server's choice */
	int line_len;
	int pending;                   /* replies still to come */
	const struct reply *expected;  /* the reply that comes now, NULL for a line of the server's choice */
	size_t seen;                   /* octets of it that have come */
	double start;                  /* of the session (churn) or of the operation */
};

extern struct options options;
extern struct results results;
extern const struct drop *maildrop;
extern int ready, alive, stopping; /* logged in; connected; start no more */
extern double measure_from;        /* replies count from here on */

double now(void);

/* wire.c: sockets and TLS */
void wire_init(void);
void wire_watch_stdin(void);
int wire_wait(void);               /* handle what has happened, for 200 ms at most; 0 when stdin has ended */
void wire_connect(struct conn *c);
void wire_send(struct conn *c, const char *b, int n);
void wire_pause(struct conn *c, int paused);
void wire_close(struct conn *c);

/* session.c: the dialogue */
void session_start(struct conn *c);
void session_receive(struct conn *c, const char *b, int n);
void session_lost(struct conn *c, const char *what);
void session_work(struct conn *c); /* logged in and waiting: send the first command */
void session_finish(struct conn *c); /* idle, stuck: take what is due, then QUIT */

#endif
