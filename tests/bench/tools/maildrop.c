#include "maildrop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct drop small, big, many;

struct reply reply(const char *text)
{
	return (struct reply){ strdup(text), strlen(text) };
}

static struct reply render(size_t size, int id, int headers_only)
{
	static const char text[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/ABCDEFGHIJKLMNOP";
	char *b = malloc(size + 4096);
	size_t n = sprintf(b, "+OK %zu octets\r\n", size), start = n;

	n += sprintf(b + n,
		"Received: from mx%d.example.org (mx%d.example.org [192.0.2.%d])\r\n"
		"\tby mail.example.com with ESMTP id %08x\r\n"
		"\tfor <user@example.com>; Mon, 23 Nov 2026 04:00:00 +0000\r\n"
		"Message-ID: <%d.synth@example.org>\r\n"
		"From: A <a@example.org>\r\nTo: user@example.com\r\nSubject: synthetic %d\r\n\r\n",
		id, id, id % 250, id * 7919, id, id);
	if (!headers_only) {
		for (int line = 1; n - start + 90 < size; line++) {
			if (line % 50 == 0) {
				n += sprintf(b + n, "..dot-stuffed\r\n");
			} else {
				memcpy(b + n, text + line % 7, 70);
				memcpy(b + n + 70, "\r\n", 2);
				n += 72;
			}
		}
		while (n - start + 2 < size)
			b[n++] = 'x';
		n += sprintf(b + n, "\r\n");
	}
	n += sprintf(b + n, ".\r\n");
	return (struct reply){ b, n };
}

static void make_drop(struct drop *d, int count, size_t size)
{
	char *list = malloc(count * 64 + 256), *uidl = malloc(count * 64 + 256), line[256];
	size_t ln, un;

	d->count = count;
	d->retr = calloc(count + 1, sizeof(struct reply));
	d->top = calloc(count + 1, sizeof(struct reply));
	d->list_one = calloc(count + 1, sizeof(struct reply));
	d->uidl_one = calloc(count + 1, sizeof(struct reply));
	ln = sprintf(list, "+OK %d messages (%zu octets)\r\n", count, size * count);
	un = sprintf(uidl, "+OK\r\n");
	for (int i = 1; i <= count; i++) {
		d->retr[i] = render(size, i, 0);
		d->top[i] = render(size, i, 1);
		ln += sprintf(list + ln, "%d %zu\r\n", i, size);
		un += sprintf(uidl + un, "%d uid%08x\r\n", i, i * 40503u);
		sprintf(line, "+OK %d %zu\r\n", i, size);
		d->list_one[i] = reply(line);
		sprintf(line, "+OK %d uid%08x\r\n", i, i * 40503u);
		d->uidl_one[i] = reply(line);
	}
	ln += sprintf(list + ln, ".\r\n");
	un += sprintf(uidl + un, ".\r\n");
	d->list = (struct reply){ list, ln };
	d->uidl = (struct reply){ uidl, un };
	sprintf(line, "+OK %d %zu\r\n", count, size * count);
	d->stat = reply(line);
}

void make_drops(void)
{
	make_drop(&small, 10, 4096);
	make_drop(&big, 1, 10 * 1024 * 1024);
	make_drop(&many, 1000, 1024);
}

const struct drop *drop_of(const char *user)
{
	return *user == 'b' ? &big : *user == 'm' ? &many : &small;
}
