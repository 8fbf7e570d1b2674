"""The scripts that Redis runs for replicas: each is one step that no other comes between.

All keys of a call have one hash tag, so that they lie in one slot of a cluster. What is found there is not believed: a
value that no replica writes is dropped and counted. Times are Redis's own, so that replicas' clocks do not matter.
"""

from __future__ import annotations

from typing import Final

LEASES_KEPT: Final = 3_600_000
"""Milliseconds until a lease is dropped that nobody tells again."""
HISTORY: Final = 50_000
"""Changes that are kept for replicas that come later; about 10 MB."""

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

OPERATIONS: Final = (
    _NOW
    + f"local kept = {LEASES_KEPT}\n"
    + """
-- KEYS: who is alive, then those that operations name by their place. ARGV: this member, operations in JSON.
-- Answer: one number for each operation, and how many values were dropped. One text, for each element of an array
-- costs the client as much as all of it.
local me, operations = ARGV[1], cjson.decode(ARGV[2])
local dropped = 0

local function sane(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
        redis.call('DEL', key)
        dropped = dropped + 1
    end
end

local function others(key)
    sane(key, 'hash')
    local sum, all = 0, redis.call('HGETALL', key)
    for at = 1, #all, 2 do
        local member, count = all[at], tonumber(all[at + 1])
        if member ~= me then
            local score = redis.call('ZSCORE', KEYS[1], member)
            if not (count and count >= 1 and count <= 1000000 and count == math.floor(count)) then
                redis.call('HDEL', key, member)
                dropped = dropped + 1
            elseif score and tonumber(score) >= now then
                sum = sum + count
            else
                redis.call('HDEL', key, member)
            end
        end
    end
    return sum
end

local function hold(key, count)
    if count > 0 then
        redis.call('HSET', key, me, count)
        redis.call('PEXPIRE', key, kept)
    else
        redis.call('HDEL', key, me)
    end
end

local function take(wanted)
    for number, want in ipairs(wanted) do
        if others(KEYS[want[1]]) + want[3] >= want[2] then
            return number - 1
        end
    end
    for _, want in ipairs(wanted) do
        hold(KEYS[want[1]], want[3] + 1)
    end
    return -1
end

sane(KEYS[1], 'zset')
local answers = {}
for number, operation in ipairs(operations) do
    local what, key = operation[1], KEYS[operation[2]]
    local answer = 0
    if what == 't' then
        answer = take(operation[3])
    elseif what == 'h' then
        sane(key, 'hash')
        hold(key, operation[3])
    elseif what == 'm' then
        redis.call('SET', key, '1', 'PX', operation[3])
    elseif what == 'q' then
        answer = redis.call('EXISTS', key)
    elseif what == 'c' then
        if redis.call('SET', key, '1', 'PX', operation[3], 'NX') then
            answer = 1
        end
    elseif what == 'u' then
        redis.call('DEL', key)
    end
    answers[number] = answer
end
answers[#answers + 1] = dropped
return table.concat(answers, ' ')
"""
)
"""Leases, marks and claims."""

EXCHANGE: Final = (
    _NOW
    + f"local kept, history = {LEASES_KEPT}, {HISTORY}\n"
    + """
-- KEYS: who is alive, history, notes, about (a hash), this member's last number, who was asked to tell all.
-- ARGV: member, milliseconds it lives, number, epoch, cursor, edition of the notes, how many to hear at most,
--       a new epoch, how many changes it tells, those, then field and value of each note ('' takes it away).
-- Answer: epoch, cursor, members, forgotten, wanted, now, edition or '-', how many to hear, in one text; time, member
-- and change of each of these in another, or '?' for what is no change; notes.
local kinds = {'zset', 'stream', 'hash', 'hash', 'string', 'string'}
for at, kind in ipairs(kinds) do
    local found = redis.call('TYPE', KEYS[at]).ok
    if found ~= kind and found ~= 'none' then
        redis.call('DEL', KEYS[at])
    end
end
local me, epoch, cursor, edition = ARGV[1], ARGV[4], ARGV[5], ARGV[6]

local function after(one, other)  -- of two ids of a stream
    local a, b = string.match(one, '^(%d+)-(%d+)$')
    local c, d = string.match(other, '^(%d+)-(%d+)$')
    if not a or not c then
        return false
    end
    a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
    return a > c or (a == c and b > d)
end

local score = redis.call('ZSCORE', KEYS[1], me)
local forgotten = (not score or tonumber(score) < now) and 1 or 0
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - kept)
local members = redis.call('ZCOUNT', KEYS[1], now, '+inf')

local current = redis.call('HGET', KEYS[4], 'epoch')
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local lost = epoch ~= '' and (epoch ~= current or after(cursor, last and last[1] or '0-0'))
if not current or (lost and epoch == current) then
    current = ARGV[8]
    redis.call('HSET', KEYS[4], 'epoch', current)
end
local wanted = 0
if lost then
    cursor = '0-0'
    if redis.call('SET', KEYS[6], me, 'NX', 'PX', 5000) then
        wanted = 1
    end
end

if redis.call('GET', KEYS[5]) ~= ARGV[3] then
    redis.call('SET', KEYS[5], ARGV[3], 'PX', kept)
    local changes = tonumber(ARGV[9])
    for at = 10, 9 + changes do
        redis.call('XADD', KEYS[2], 'MAXLEN', '~', history, '*', 'm', me, 'c', ARGV[at])
    end
    for at = 10 + changes, #ARGV, 2 do
        if ARGV[at + 1] == '' then
            redis.call('HDEL', KEYS[3], ARGV[at])
        else
            redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
        end
    end
    if #ARGV >= 10 + changes then
        redis.call('HINCRBY', KEYS[4], 'notes', 1)
    end
end

local entries = redis.call('XRANGE', KEYS[2], '(' .. cursor, '+', 'COUNT', ARGV[7])
if #entries > 0 then
    cursor = entries[#entries][1]
end
local there = redis.call('HGET', KEYS[4], 'notes')
local notes = {}
if there and not lost and there ~= edition then
    edition, notes = there, redis.call('HGETALL', KEYS[3])
else
    edition = '-'
end
local heard = {}
for number, entry in ipairs(entries) do
    local fields = entry[2]
    local when, member, change = string.match(entry[1], '^%d+'), fields[2], fields[4]
    if #fields == 4 and string.match(member, '^%x+$') and string.match(change, '^[%w_=-]+$') then
        heard[number] = when .. ' ' .. member .. ' ' .. change
    else
        heard[number] = '? ? ?'
    end
end
local about = {current, cursor, members, forgotten, wanted, now, edition, #entries}
return {table.concat(about, ' '), table.concat(heard, ' '), notes}
"""
)
"""Telling and hearing; shows that a member lives."""

BEAT: Final = (
    _NOW
    + """
-- KEYS: who is alive, in another shard. ARGV: member, milliseconds it lives. Answer: was it dead?
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then
    redis.call('DEL', KEYS[1])
end
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 3600000)
return (not score or tonumber(score) < now) and 1 or 0
"""
)

LEAVE: Final = """
-- KEYS: who is alive. ARGV: member.
return redis.call('ZREM', KEYS[1], ARGV[1])
"""
