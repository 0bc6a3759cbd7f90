"""Exchange: what processes tell one another through Redis, in one script that runs as a whole or not at all.

For each window there is a hash: process → `SPENT:HELD`, what it has used and what it may still use without asking. A
process writes its own numbers, never differences, so an exchange that was interrupted and is made again counts nothing
twice, and a Redis that has forgotten everything is told again. The script gives a process part of what nobody has spent
or holds, so that all of them together cannot exceed the limit, however late they hear of each other.

A process that has not yet asked for a key may use a small share of it, which the script keeps free until it has. That
this share gets free soon is what the bell is for: a sorted set of keys by the time at which something about them was
news, which every process reads. A key is news when it is first used, and at each sixteenth of its limit, up or down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.limits.store import UNASKED
from app.limits.windows import Window

_PREFIX = "presage:limit:"
# Sorted set of processes by their last sign of life.
ALIVE = f"{_PREFIX}alive"
_BELL = f"{_PREFIX}bell"
_ALIVE_SECONDS = 2
# In one exchange. It bounds how long the event loop, here, and Redis, there, are kept busy.
MOST_WINDOWS = 100
# As `wanted`: as much as there is to be had.
EVERYTHING = -1

# KEYS: alive, bell, then for each window its hash and the one of the window before.
# ARGV: process, seconds that a sign of life is good for, last news heard, most news, UNASKED; then for each window key,
# seconds, number, limit, spent, spent before, held, wanted.
SCRIPT = """
local me, patience, heard, most, unasked = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = micros / 1000000

local joined = redis.call('ZADD', KEYS[1], now, me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - patience)
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + patience, '+inf')
local processes = redis.call('ZRANGE', KEYS[1], 0, -1)
local alive = {}
for _, process in ipairs(processes) do alive[process] = true end

if joined == 1 then heard = '0' end
local rung = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. heard, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local bell = math.max(micros, tonumber(last[2] or 0))
local news = {}
for i = 1, #rung, 2 do
    news[#news + 1] = rung[i]
    heard = rung[i + 1]
end

-- What the others have spent, and that with what they hold; a process that is gone holds nothing.
local function others(hash, seen)
    local spent, claims, users, level = 0, 0, 1, 0
    local flat = redis.call('HGETALL', hash)
    for i = 1, #flat, 2 do
        if flat[i] == 'level' then
            level = tonumber(flat[i + 1])
        elseif flat[i] ~= me then
            local used, held = string.match(flat[i + 1], '(%d+):(%d+)')
            used, held = tonumber(used), alive[flat[i]] and tonumber(held) or 0
            spent, claims = spent + used, claims + used + held
            if alive[flat[i]] then
                seen[flat[i]] = true
                if used > 0 then users = users + 1 end
            end
        end
    end
    return spent, claims, users, level
end

local out, ringing = {}, 0
for i = 0, (#ARGV - 5) / 8 - 1 do
    local base, hash, before = 5 + 8 * i, KEYS[3 + 2 * i], KEYS[4 + 2 * i]
    local key, seconds, number = ARGV[base + 1], tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])
    local limit, mine, mine_before = tonumber(ARGV[base + 4]), tonumber(ARGV[base + 5]), tonumber(ARGV[base + 6])
    local least, wanted = tonumber(ARGV[base + 7]), tonumber(ARGV[base + 8])
    local seen = {}

    local spent_before, claims_before = others(before, seen)
    if mine_before > 0 or redis.call('HEXISTS', before, me) == 1 then
        redis.call('HSET', before, me, string.format('%.0f:0', mine_before))
        redis.call('EXPIRE', before, 2 * seconds)
    end
    local spent, claims, users, level = others(hash, seen)
    for _, process in ipairs(processes) do
        if process ~= me and not seen[process] then
            claims = claims + math.floor(limit / (unasked * #processes))
        end
    end

    local weight = 1 - math.min(math.max(now / seconds - number, 0), 1)
    local room = math.floor(limit + 0.000001 - (claims_before + mine_before) * weight - claims - mine)
    local share = math.max(0, room)
    if #processes > 1 then share = math.min(share, math.ceil(share / (users + 1))) end
    if wanted >= 0 then share = math.min(share, wanted) end
    local held = math.max(least, share)
    redis.call('HSET', hash, me, string.format('%.0f:%.0f', mine, held))

    local reached = math.ceil(16 * (spent + mine) / limit)
    if reached ~= level then
        redis.call('HSET', hash, 'level', reached)
        ringing = ringing + 1
        redis.call('ZADD', KEYS[2], string.format('%.0f', bell + ringing), key)
    end
    redis.call('EXPIRE', hash, 2 * seconds)
    out[#out + 1] = string.format('%.0f %.0f %.0f %.0f', held, spent, claims, spent_before + mine_before)
end

if ringing > 0 then redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -10001) end
if ringing > 0 then last[2] = string.format('%.0f', bell + ringing) end
if #news < most then heard = last[2] or heard end
local head = string.format('%d %d %.6f %s', joined, #processes, now, heard)
return {head, table.concat(out, ' '), unpack(news)}
"""


class Asked(NamedTuple):
    """A window as it was when the others were told; `held` is what this process keeps at least, `wanted` at most."""

    window: Window
    number: float
    spent: int
    spent_before: int
    held: int
    wanted: int


class Share(NamedTuple):
    """What this process may use without asking, and what the others have done."""

    held: int
    others: int
    others_claims: int
    previous: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What an exchange has brought. `time` is Redis's, in seconds; `news` are keys that others use."""

    joined: bool
    processes: int
    time: float
    heard: str
    shares: Sequence[Share]
    news: Sequence[str]


def question(process: str, heard: str, asked: Sequence[Asked]) -> tuple[list[str], list[str | int]]:
    """Keys and arguments of the script. `heard` is the last answer's, at first 0."""
    keys = [ALIVE, _BELL]
    arguments: list[str | int] = [process, _ALIVE_SECONDS, heard, MOST_WINDOWS, UNASKED]
    for window, number, spent, spent_before, held, wanted in asked:
        keys += f"{_PREFIX}{window.key}:{number:.0f}", f"{_PREFIX}{window.key}:{number - 1:.0f}"
        arguments += window.key, window.seconds, int(number), window.limit, spent, spent_before, held, wanted
    return keys, arguments


def answer(reply: Sequence[bytes]) -> Answer:
    """What the script has answered. Raises ValueError for anything else."""
    joined, processes, now, heard = reply[0].decode().split()
    numbers = [int(number) for number in reply[1].split()]
    shares = [Share(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
    return Answer(joined == "1", int(processes), float(now), heard, shares, [key.decode() for key in reply[2:]])
