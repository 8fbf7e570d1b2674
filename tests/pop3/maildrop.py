"""A whole POP3 server in memory, as plain as RFC 1939: one line in, one reply out."""

from __future__ import annotations


class Maildrop:
    """Messages behind USER and PASS. `capabilities` None: a server older than RFC 2449."""

    def __init__(self, messages: list[bytes], capabilities: tuple[str, ...] | None = None) -> None:
        self.messages = dict(enumerate(messages, 1))
        self.capabilities = capabilities
        self.lines: list[bytes] = []  # every line it was sent
        self.open = True
        self._input = b""
        self._marked: set[int] = set()

    def greeting(self) -> bytes:
        return b"+OK old server <1.2@backend.internal>\r\n"

    def hear(self, octets: bytes) -> bytes:
        """Octets from the proxy; the replies to the lines that are now complete."""
        *lines, self._input = (self._input + octets).split(b"\r\n")
        self.lines += lines
        return b"".join(self._reply(line) for line in lines)

    def _reply(self, line: bytes) -> bytes:
        assert self.open, "nothing is sent behind QUIT"
        words = line.decode("latin-1").split(" ")
        handler = getattr(self, f"_{words[0].lower()}", None)
        if handler is None:
            return b"-ERR what?\r\n"
        numbers = [int(word) for word in words[1:] if word.isdigit()]
        if numbers and numbers[0] not in self._there():
            return b"-ERR [SYS/TEMP] no such message\r\n"
        reply: bytes = handler(numbers)
        return reply

    def _there(self) -> dict[int, bytes]:
        return {number: text for number, text in self.messages.items() if number not in self._marked}

    def _listing(self, lines: list[bytes]) -> bytes:
        return b"+OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b".\r\n"

    def _user(self, _: list[int]) -> bytes:
        return b"+OK\r\n"

    def _pass(self, _: list[int]) -> bytes:
        return b"+OK\r\n" if self.lines[-1] == b"PASS good" else b"-ERR bad\r\n"

    def _capa(self, _: list[int]) -> bytes:
        if self.capabilities is None:
            return b"-ERR unknown command\r\n"
        return self._listing([tag.encode() for tag in self.capabilities])

    def _stat(self, _: list[int]) -> bytes:
        there = self._there()
        return b"+OK %d %d\r\n" % (len(there), sum(map(len, there.values())))

    def _list(self, numbers: list[int]) -> bytes:
        rows = {number: b"%d %d" % (number, len(text)) for number, text in self._there().items()}
        return b"+OK " + rows[numbers[0]] + b"\r\n" if numbers else self._listing(list(rows.values()))

    def _uidl(self, numbers: list[int]) -> bytes:
        rows = {number: b"%d uid-%d" % (number, number) for number in self._there()}
        return b"+OK " + rows[numbers[0]] + b"\r\n" if numbers else self._listing(list(rows.values()))

    def _retr(self, numbers: list[int]) -> bytes:
        lines = self.messages[numbers[0]].split(b"\r\n")[:-1]
        return self._listing([b"." + line if line.startswith(b".") else line for line in lines])

    def _dele(self, numbers: list[int]) -> bytes:
        self._marked.add(numbers[0])
        return b"+OK\r\n"

    def _rset(self, _: list[int]) -> bytes:
        self._marked.clear()
        return b"+OK\r\n"

    def _noop(self, _: list[int]) -> bytes:
        return b"+OK\r\n"

    def _quit(self, _: list[int]) -> bytes:
        self.messages = self._there()
        self.open = False
        return b"+OK bye\r\n"
