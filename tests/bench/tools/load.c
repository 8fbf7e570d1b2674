/* POP3 load generator for benchmarks: one thread, epoll, 127.0.0.1 only.
 *
 * usage: load MODE PORT [-c connections] [-t seconds] [-u user] [-w password] [-a user|plain|apop] [-T]
 *                       [-k messages] [-n sessions] [-p depth] [-r ramp]
 *   churn  whole sessions on new connections: greeting, USER, PASS, STAT, LIST, RETR 1..k, QUIT
 *   bulk   RETR 1, again and again, on held connections
 *   noop   NOOP in lock-step on held connections
 *   pipe   p times RETR in one write, wait for all replies, repeat
 *   idle   log in, print "READY n", hold until stdin ends, QUIT
 *   stuck  log in, ask for RETR 1 and do not read; print "READY n", hold until stdin ends, read, QUIT
 * -T TLS from the start (full handshakes, no verification)   -n end churn after that many sessions
 * -r logins under way at a time (all modes but churn)
 *
 * Every octet of every message and listing is compared with what the backend sends. Prints one line of JSON: "lost"
 * are sessions that did not come to their end, "altered" those of them that brought other octets than the backend's.
 * Times and octets count from the moment when all connections are logged in (churn: from the start; idle, stuck: from
 * the end of the wait).
 */
#include "load.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 600 };
#define LAST_REPLIES 15.0             /* seconds that sessions under way have after the time is over */

static const char *const mode_names[MODES] = { "churn", "bulk", "noop", "pipe", "idle", "stuck" };

struct options options = {
	.connections = 1, .messages = 3, .depth = 100, .ramp = 64, .seconds = 3, .user = "small", .password = "secret"
};
struct results results;
const struct drop *maildrop;
int ready, alive, stopping;
double measure_from;

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void usage(void)
{
	fprintf(stderr, "usage: load churn|bulk|noop|pipe|idle|stuck PORT [-c connections] [-t seconds] [-u user]"
		" [-w password]\n            [-a user|plain|apop] [-T] [-k messages] [-n sessions] [-p depth] [-r ramp]\n");
	exit(2);
}

static enum login login_named(const char *name)
{
	if (!strcmp(name, "plain"))
		return BY_PLAIN;
	if (!strcmp(name, "apop"))
		return BY_APOP;
	if (strcmp(name, "user"))
		usage();
	return BY_USER;
}

static void read_options(int argc, char **argv)
{
	struct options *o = &options;
	int letter;

	for (o->mode = 0; argc > 2 && o->mode < MODES && strcmp(argv[1], mode_names[o->mode]); o->mode++)
		;
	if (argc < 3 || o->mode == MODES)
		usage();
	o->port = atoi(argv[2]);
	optind = 3;
	while ((letter = getopt(argc, argv, "c:t:k:u:w:a:Tn:p:r:")) != -1)
		switch (letter) {
		case 'c': o->connections = atoi(optarg); break;
		case 't': o->seconds = atof(optarg); break;
		case 'k': o->messages = atoi(optarg); break;
		case 'u': o->user = optarg; break;
		case 'w': o->password = optarg; break;
		case 'a': o->login = login_named(optarg); break;
		case 'T': o->tls = 1; break;
		case 'n': o->sessions = atol(optarg); break;
		case 'p': o->depth = atoi(optarg); break;
		case 'r': o->ramp = atoi(optarg); break;
		default: usage();
		}
	maildrop = drop_of(o->user);
	if (o->connections < 1 || o->ramp < 1 || o->depth < 1 || o->depth > MAX_DEPTH || o->messages < 0
	    || (o->mode == CHURN && o->messages > maildrop->count) || (o->mode == PIPE && o->depth > maildrop->count))
		usage();
}

/* ---- the modes ---- */

static void churn(struct conn *conns)
{
	double end = now() + options.seconds;
	long first = options.connections;

	if (options.sessions && options.sessions < first)
		first = options.sessions;
	measure_from = now();
	for (long i = 0; i < first; i++)
		session_start(&conns[i]);
	while (alive > 0 && now() < end + LAST_REPLIES) {
		wire_wait();
		stopping = now() >= end;
	}
}

/* Log in everywhere, some at a time. */
static void log_in(struct conn *conns)
{
	int started = 0;

	measure_from = 1e18;
	while (ready + results.lost < options.connections) {
		while (started < options.connections && started - ready - results.lost < options.ramp)
			session_start(&conns[started++]);
		wire_wait();
	}
}

static void each_logged_in(struct conn *conns, void (*what)(struct conn *))
{
	for (int i = 0; i < options.connections; i++)
		if (conns[i].fd >= 0)
			what(&conns[i]);
}

static void hold(struct conn *conns)
{
	double end;

	if (options.mode == STUCK)
		each_logged_in(conns, session_work);
	printf("READY %d\n", ready);
	fflush(stdout);
	wire_watch_stdin();
	while (wire_wait())
		;
	close(0);
	measure_from = now();
	each_logged_in(conns, session_finish);
	for (end = now() + 4 * LAST_REPLIES; alive > 0 && now() < end; )
		wire_wait();
}

static void work(struct conn *conns)
{
	measure_from = now();
	each_logged_in(conns, session_work);
	while (now() < measure_from + options.seconds && results.lost < options.connections)
		wire_wait();
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void print_results(double elapsed)
{
	struct results *r = &results;
	double p50 = 0, p99 = 0, max = 0;

	if (r->latencies) {
		qsort(r->latency, r->latencies, sizeof *r->latency, by_value);
		p50 = r->latency[r->latencies / 2];
		p99 = r->latency[(long)(r->latencies * 0.99)];
		max = r->latency[r->latencies - 1];
	}
	printf("{\"sessions\":%ld,\"ops\":%ld,\"lost\":%ld,\"altered\":%ld,\"bytes\":%llu,\"seconds\":%.4f,"
		"\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}\n", r->sessions, r->ops, r->lost, r->altered,
		r->bytes, elapsed, p50 * 1e6, p99 * 1e6, max * 1e6);
}

int main(int argc, char **argv)
{
	struct rlimit files;
	struct conn *conns;
	double elapsed;

	make_drops();
	read_options(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	wire_init();
	conns = calloc(options.connections, sizeof *conns);
	if (options.mode == CHURN) {
		churn(conns);
	} else {
		log_in(conns);
		(options.mode == IDLE || options.mode == STUCK ? hold : work)(conns);
	}
	elapsed = now() - measure_from;
	if (options.mode == CHURN || options.mode == IDLE || options.mode == STUCK)
		results.lost += alive;        /* came to no end in time */
	print_results(elapsed);
	return 0;
}
