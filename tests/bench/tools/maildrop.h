/* The maildrops that the backend serves, and that the load generator compares every reply with. */
#ifndef MAILDROP_H
#define MAILDROP_H

#include <stddef.h>

struct reply { const char *p; size_t n; };

struct drop {
	int count;
	struct reply *retr, *top, *list_one, *uidl_one;  /* indexed by message number, from 1 */
	struct reply stat, list, uidl;
};

/* Render all replies; call it once, first. */
void make_drops(void);

/* The first letter of the user's name picks the maildrop:
 *   b*  1 message of 10 MB      m*  1000 messages of 1 KB      other  10 messages of 4 KB
 */
const struct drop *drop_of(const char *user);

struct reply reply(const char *text);

#endif
