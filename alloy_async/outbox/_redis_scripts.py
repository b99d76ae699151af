"""The keys of an outbox in Redis, and the scripts that change them; each script is one step that nothing comes between.

======== ========== ===============================================================================================
key      type       holds
======== ========== ===============================================================================================
events   stream     an entry for each event: digest of its visitor, bytes of its body, when it was released; no more
bodies   hash       the events themselves, by key
index    sorted set ``owner:visitor:key:size`` for each event, in the order of these texts
state    hash       the epoch, the last key, the bytes of all bodies
workers  sorted set until when each worker's lease holds; 0: it has left
known    hash       the epoch up to which each worker knows of refusals
looks    hash       when each worker looked last, and the epoch that it knew
refusals sorted set digests of visitors that declined, scored with the epoch
tickets  hash       what each worker's last step was
======== ========== ===============================================================================================

Why it is so:

- *Whose an event is* stands in the pending list of a consumer group, with one consumer a worker, where ``XPENDING`` and
  ``XINFO CONSUMERS`` show it to people. ``XREADGROUP`` cannot hand an event to the one worker that wrote it, so
  ``XCLAIM FORCE`` enters it there in the step in which it is added. Redis cannot be asked for the part of such a list
  that concerns a visitor: that is what the index is for.
- *The bodies lie beside the stream.* ``XDEL`` only marks an entry; its bytes stay in the node that it shares with
  others, and in every dump of it, until the last of them has gone. ``HDEL`` leaves nothing.
- *Nothing is trimmed.* Entries leave by ``XACK`` and ``XDEL`` in one step. There is no ``MAXLEN``: a full outbox turns
  away what is new, it does not drop what it has taken.
- *No step is half told.* A worker whose connection breaks does not know whether its last step was done. It says so with
  its next one: then what it was never told of is undone, and refused should it still arrive.
- *Redis may be full.* Then nothing is added. All else must go on, or it would stay full: a script that has written may
  go on writing, so most begin with a deletion of nothing.
- *Redis may lose its latest writes*, when it restarts from its files. Epochs and keys grow all the same: workers say
  what they have seen.

Needs effect replication and ``XPENDING`` from an exclusive id: Redis 6.2, or any Valkey.

Source: Redis, "Scripting with Lua" (out of memory, replication) and the pages of the commands; the node that keeps the
bytes of a deleted entry was found in a dump.
"""

from __future__ import annotations

from .._redis import Script

__all__ = [
    "ABANDONED",
    "BEGIN",
    "BODIES",
    "CHANGES",
    "CHANNEL",
    "CLAIM",
    "ERASE",
    "EVENTS",
    "EXPIRE",
    "KEYS",
    "LEAVE",
    "LOOK",
    "OLDEST",
    "OWNERS",
    "PURGE",
    "RELEASE",
    "RENEW",
    "ROWS",
    "SHELF",
    "UNHEARD",
    "WRITE",
    "key_names",
]

CHANNEL = "epoch"
"""What is published there means: look, there is another epoch. What it says counts for nothing, it may be of others."""

EVENTS, BODIES = 0, 1
"""Which of the keys holds the entries, and which the events themselves."""

_PARTS = ("events", "bodies", "index", "state", "workers", "known", "looks", "refusals", "tickets")


def key_names(prefix: str) -> list[str]:
    """Return the keys of an outbox, as all scripts take them."""
    return [f"{prefix}{part}" for part in _PARTS]


_PRELUDE = """
local EVENTS, BODIES, INDEX, STATE, WORKERS, KNOWN, LOOKS, REFUSALS, TICKETS = unpack(KEYS)
local WORKER = ARGV[1]
local GROUP = 'workers'
local NOBODY = 'nobody----------'  -- as long as the others
local PAGE = 500
local AT_ONCE = 1000

local function server_time()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

local NOW = tonumber(ARGV[2]) or server_time()
local HEARD = tonumber(ARGV[3])

local function even_when_full() redis.call('HDEL', LOOKS, '') end

local function prepare()
  if redis.call('EXISTS', EVENTS) == 0 then
    redis.call('XGROUP', 'CREATE', EVENTS, GROUP, '0', 'MKSTREAM')
  end
end

local function digits(number) return string.format('%.0f', number) end
local function id_of(key) return digits(key) .. '-0' end

-- What the index holds: owner, visitor, key and size, each of its own length.
local function member_of(owner, visitor, key, size)
  return string.format('%s:%s:%016.0f:%010.0f', owner, visitor, key, size)
end
local function owner_of(member) return string.sub(member, 1, 16) end
local function label_of(member) return string.sub(member, 18) end
local function visitor_of(member) return string.sub(member, 18, 49) end
local function key_of(member) return tonumber(string.sub(member, 51, 66)) end
local function size_of(member) return tonumber(string.sub(member, 68)) end
local function by_age(one, other) return string.sub(one, 51, 66) < string.sub(other, 51, 66) end

local function in_parts(list, ...)
  local head = {...}
  for first = 1, #list, PAGE do
    local call = {unpack(head)}
    for n = first, math.min(first + PAGE - 1, #list) do call[#call + 1] = list[n] end
    redis.call(unpack(call))
  end
end

local function number_in_state(name) return tonumber(redis.call('HGET', STATE, name) or 0) end

local function epoch_now()
  local epoch = number_in_state('epoch')
  if HEARD > epoch then
    redis.call('HSET', STATE, 'epoch', HEARD)
    return HEARD
  end
  return epoch
end

local function is_entered() return redis.call('ZSCORE', WORKERS, WORKER) ~= false end
local function lease_of(worker) return tonumber(redis.call('ZSCORE', WORKERS, worker) or 0) end

-- What a look says is for now: neither the log nor a replica need it. Last of all, so that where nothing else was
-- written not even an empty transaction reaches them.
local function look()
  local epoch = epoch_now()
  if is_entered() then
    redis.set_repl(redis.REPL_NONE)
    even_when_full()
    redis.call('HSET', LOOKS, WORKER, string.format('%.0f %.6f', HEARD, server_time()))
    redis.set_repl(redis.REPL_ALL)
  end
  return epoch
end

local function pending()
  local counts = {}
  if redis.call('EXISTS', EVENTS) == 1 then
    for _, one in ipairs(redis.call('XPENDING', EVENTS, GROUP)[4] or {}) do counts[one[1]] = tonumber(one[2]) end
  end
  return counts
end

-- What the index holds of an event, and when it was released; nil where it has gone.
local function find(owner, key)
  local found = redis.call('XRANGE', EVENTS, id_of(key), id_of(key))[1]
  if found then return member_of(owner, found[2][2], key, found[2][4]), tonumber(found[2][6]) end
end

local function keys_pending(owner, from, count)
  local keys = {}
  for _, one in ipairs(redis.call('XPENDING', EVENTS, GROUP, from, '+', count, owner)) do
    keys[#keys + 1] = tonumber(string.match(one[1], '^%d+'))
  end
  return keys
end

-- The last id counts as handed out, so that nothing is left to be read by anybody.
local function enter_pending(owner, ids)
  for first = 1, #ids, PAGE do
    local last = math.min(first + PAGE - 1, #ids)
    local call = {'XCLAIM', EVENTS, GROUP, owner, 0}
    for n = first, last do call[#call + 1] = ids[n] end
    for _, word in ipairs({'FORCE', 'JUSTID', 'LASTID', ids[last]}) do call[#call + 1] = word end
    redis.call(unpack(call))
  end
end

local function remove(members)
  local found, ids, keys, size = {}, {}, {}, 0
  for _, member in ipairs(members) do
    if redis.call('ZSCORE', INDEX, member) then
      found[#found + 1] = member
      ids[#ids + 1] = id_of(key_of(member))
      keys[#keys + 1] = digits(key_of(member))
      size = size + size_of(member)
    end
  end
  in_parts(ids, 'XACK', EVENTS, GROUP)
  in_parts(ids, 'XDEL', EVENTS)
  in_parts(keys, 'HDEL', BODIES)
  in_parts(found, 'ZREM', INDEX)
  if size > 0 then redis.call('HINCRBY', STATE, 'size', digits(-size)) end
  return #found
end

local function give(members, owner)
  local gone, come, ids = {}, {}, {}
  for _, member in ipairs(members) do
    if redis.call('ZSCORE', INDEX, member) then
      gone[#gone + 1] = member
      come[#come + 1] = 0
      come[#come + 1] = owner .. ':' .. label_of(member)
      ids[#ids + 1] = id_of(key_of(member))
    end
  end
  in_parts(gone, 'ZREM', INDEX)
  in_parts(come, 'ZADD', INDEX)
  enter_pending(owner, ids)
end

local function leave_to_others(members)
  redis.call('ZADD', WORKERS, 0, NOBODY)
  redis.call('HINCRBY', STATE, 'left', 1)
  give(members, NOBODY)
end

local function own_events(limit)
  return redis.call('ZRANGEBYLEX', INDEX, '[' .. WORKER .. ':', '(' .. WORKER .. ';', 'LIMIT', 0, limit)
end

local function last_ticket()
  local ticket, what, keys = string.match(redis.call('HGET', TICKETS, WORKER) or '0 -', '^(%d+) (%S+) ?(.*)$')
  return tonumber(ticket), what, keys
end

local function note_ticket(ticket, what, keys)
  redis.call('HSET', TICKETS, WORKER, digits(ticket) .. ' ' .. what .. ' ' .. table.concat(keys, ' '))
end

-- Undo what this worker was never told of: its tickets from the one to the other.
local function settle(first, last)
  if first == 0 then return end
  local ticket, what, keys = last_ticket()
  if ticket > last then return end
  if ticket >= first then
    local members = {}
    for key in string.gmatch(keys, '%d+') do members[#members + 1] = find(WORKER, tonumber(key)) end
    if what == 'write' then remove(members) end
    if what == 'claim' then leave_to_others(members) end
  end
  note_ticket(last, '-', {})
end

local function see(epoch)
  if epoch > tonumber(redis.call('HGET', KNOWN, WORKER) or -1) then redis.call('HSET', KNOWN, WORKER, epoch) end
end

-- Remove the refusals that every worker knows of that may still come and ask.
local function forget_refusals()
  local oldest = number_in_state('epoch')
  for _, known in ipairs(redis.call('HVALS', KNOWN)) do oldest = math.min(oldest, known) end
  if redis.call('ZREMRANGEBYSCORE', REFUSALS, '-inf', oldest) > 0 then
    redis.call('HSET', STATE, 'forgotten', oldest)
  end
end

local function bury(remembered)
  local have = pending()
  local ended = redis.call('ZRANGEBYSCORE', WORKERS, '-inf', NOW, 'WITHSCORES')
  for n = 1, #ended, 2 do
    local worker, lease = ended[n], tonumber(ended[n + 1])
    if not have[worker] and (lease == 0 or lease + remembered <= NOW) then
      redis.call('ZREM', WORKERS, worker)
      for _, key in ipairs({KNOWN, LOOKS, TICKETS}) do redis.call('HDEL', key, worker) end
      redis.call('XGROUP', 'DELCONSUMER', EVENTS, GROUP, worker)
    end
  end
  forget_refusals()
end

-- Others that have events, and how many.
local function owners_between(earliest, latest)
  local have, owners = pending(), {}
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, earliest, latest)) do
    if have[worker] and worker ~= WORKER then owners[#owners + 1] = worker end
  end
  return owners, have
end
local function dead_owners() return owners_between('-inf', NOW) end
local function living_owners() return owners_between('(' .. string.format('%.17g', NOW), '+inf') end

local function of_visitor(owner, visitor, count)
  local front = owner .. ':' .. visitor
  return redis.call('ZRANGEBYLEX', INDEX, '[' .. front .. ':', '(' .. front .. ';', 'LIMIT', 0, count)
end

-- Whether an event has to wait for an older one of its visitor that another living worker has.
local function waiting_for_others()
  local owners, oldest = living_owners(), {}
  return function(member)
    local visitor = visitor_of(member)
    if not oldest[visitor] then
      oldest[visitor] = math.huge
      for _, owner in ipairs(owners) do
        local first = of_visitor(owner, visitor, 1)[1]
        if first then oldest[visitor] = math.min(oldest[visitor], key_of(first)) end
      end
    end
    return key_of(member) > oldest[visitor]
  end
end

local function waiting_for_nobody() return false end
"""


def _script(body: str) -> Script:
    return Script(_PRELUDE + body)


# A worker begins, looks and leaves

BEGIN = _script("""
local lease, remembered, version = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
even_when_full()
prepare()
redis.call('HSETNX', STATE, 'version', version)
if number_in_state('version') > version then return {-3} end
bury(remembered)
redis.call('ZADD', WORKERS, NOW + lease, WORKER)
local epoch = look()
see(epoch)
return {epoch}
""")
"""Takes the lease in seconds, for how many seconds after its end a worker may come back, and the version of all this.
Returns the epoch; -3 alone when a later version was here first."""

LOOK = _script("""
local held = lease_of(WORKER) > NOW and 1 or 0
return {look(), held}
""")
"""Returns the epoch, and whether the lease holds. It writes, so that no replica answers in the place of its primary."""

RENEW = _script("""
local doubt, ticket, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
even_when_full()
prepare()
settle(doubt, ticket)
local held = lease_of(WORKER) > NOW
redis.call('ZADD', WORKERS, NOW + lease, WORKER)
redis.call('HSETNX', KNOWN, WORKER, 0)
return {look(), held and 1 or 0}
""")
"""Takes the lease in seconds; returns the epoch, and whether it held. It enters a worker again that was forgotten."""

LEAVE = _script("""
local doubt, ticket, remembered = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
even_when_full()
prepare()
settle(doubt, ticket)
-- So that there are few owners, whose events are quickly found. Where there are many events it would take long itself.
local kept = own_events(AT_ONCE + 1)
if #kept > 0 and #kept <= AT_ONCE then leave_to_others(kept) end
redis.call('ZADD', WORKERS, 0, WORKER)
redis.call('HDEL', KNOWN, WORKER)
redis.call('HDEL', LOOKS, WORKER)
bury(remembered)
return {epoch_now()}
""")

RELEASE = _script("""
local doubt, ticket = tonumber(ARGV[4]), tonumber(ARGV[5])
even_when_full()
prepare()
settle(doubt, ticket)
local left = own_events(AT_ONCE)
if #left > 0 then leave_to_others(left) end
return {look(), #left == AT_ONCE and 1 or 0}
""")
"""Returns the epoch, and whether there is more to leave to others."""

# Events

WRITE = _script("""
local doubt, ticket, since, top = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local most, most_size, ended_count = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local first_event = 11 + ended_count

-- A write that changes nothing, to see whether Redis is full: as long as nothing else was written it says so.
local probe = first_event <= #ARGV and redis.pcall('HSETNX', STATE, 'epoch', 0)
even_when_full()
local epoch = look()
if not is_entered() then return {-2} end
settle(doubt, ticket - 1)
if last_ticket() >= ticket or since < number_in_state('forgotten') then return {-1} end
see(since)

local ended = {}
for n = 11, first_event - 1 do ended[#ended + 1] = WORKER .. ':' .. ARGV[n] end
remove(ended)
if type(probe) == 'table' then return probe end

local refused, asked = {}, {}
local function declined(visitor)
  if since == epoch then return false end
  if asked[visitor] == nil then
    asked[visitor] = tonumber(redis.call('ZSCORE', REFUSALS, visitor) or 0) > since
    if asked[visitor] then refused[#refused + 1] = visitor end
  end
  return asked[visitor]
end

local count, size = redis.call('XLEN', EVENTS), number_in_state('size')
local key, added = math.max(number_in_state('key'), top), 0
local away, keys, ids, bodies, index, bound = {}, {}, {}, {}, {}, ''
for n = first_event, #ARGV, 2 do
  local visitor, accepted, event = string.sub(ARGV[n], 1, 32), string.sub(ARGV[n], 33), ARGV[n + 1]
  local length = #event - string.find(event, '\\n', 1, true)
  local wanted = not declined(visitor)
  if wanted and bound == '' then
    if count + 1 > most then
      bound = 'max_queued'
    elseif size + length > most_size then
      bound = 'max_queued_bytes'
    end
  end
  if wanted and bound == '' then
    key, count, size, added = key + 1, count + 1, size + length, added + length
    keys[#keys + 1] = digits(key)
    ids[#ids + 1] = id_of(key)
    redis.call('XADD', EVENTS, id_of(key), 'visitor', visitor, 'size', length, 'accepted', accepted)
    bodies[#bodies + 1] = digits(key)
    bodies[#bodies + 1] = event
    index[#index + 1] = 0
    index[#index + 1] = member_of(WORKER, visitor, key, length)
  else
    away[#away + 1] = (n - first_event) / 2
  end
end
note_ticket(ticket, 'write', keys)
if #ids > 0 then
  in_parts(bodies, 'HSET', BODIES)
  in_parts(index, 'ZADD', INDEX)
  enter_pending(WORKER, ids)
  redis.call('HSET', STATE, 'key', digits(key))
  redis.call('HINCRBY', STATE, 'size', digits(added))
end
return {epoch, bound, refused, key - #ids + 1, away}
""")
"""Takes the bounds, the events that ended as ``visitor:key:size``, and for each new one a text of its visitor and when it was
released, and the event with its body behind the first line. Returns the epoch, the bound, the visitors that declined,
the first key, and which of the events were turned away, counted from 0. Alone: -1 for a step that comes too late, or
when refusals were forgotten that this worker does not know of; -2 for a worker that is not entered, because it has left,
or Redis has lost its data."""

OWNERS = _script("""
local owners, have = dead_owners()
local found = {}
for _, owner in ipairs(owners) do
  found[#found + 1] = owner
  found[#found + 1] = have[owner]
  found[#found + 1] = owner == NOBODY and number_in_state('left') or redis.call('ZSCORE', WORKERS, owner)
end
return found
""")
"""Returns the dead that have events, how many, and something that is another one when they have got more."""

OLDEST = _script("""
local count, ordered, visitors = tonumber(ARGV[4]), ARGV[5] == '1', ARGV[6]
local found, waits = {}, ordered and waiting_for_others() or waiting_for_nobody
local function keep_oldest()
  table.sort(found, by_age)
  for n = #found, count + 1, -1 do found[n] = nil end
end
for _, owner in ipairs(dead_owners()) do
  for visitor in string.gmatch(visitors, '%x+') do
    for _, member in ipairs(of_visitor(owner, visitor, count)) do
      if not waits(member) then found[#found + 1] = member end
      if #found > 4 * count + PAGE then keep_oldest() end
    end
  end
end
keep_oldest()
return found
""")
"""Takes how many, whether none is wanted that waits for an older one of its visitor which another living worker has, and
the visitors in one text. Returns the oldest events of the dead, as ``owner:visitor:key:size``."""

CLAIM = _script("""
local doubt, ticket, room, ordered = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
even_when_full()
local epoch = look()
if not is_entered() then return {-2} end
settle(doubt, ticket - 1)
if last_ticket() >= ticket then return {-1} end

local taken, keys, answer, total = {}, {}, {}, 0
local waits = ordered and waiting_for_others() or waiting_for_nobody
for n = 8, #ARGV do
  local member, key = ARGV[n], digits(key_of(ARGV[n]))
  if redis.call('ZSCORE', INDEX, member) and lease_of(owner_of(member)) <= NOW and not waits(member) then
    total = total + size_of(member)
    if #taken > 0 and total > room then break end
    taken[#taken + 1], keys[#keys + 1] = member, key
    answer[#answer + 1] = label_of(member)
    answer[#answer + 1] = redis.call('HGET', BODIES, key)
  end
end
give(taken, WORKER)
note_ticket(ticket, 'claim', keys)
return {epoch, answer}
""")
"""Takes how many bytes, whether events wait for older ones as above, and which events, as ``OLDEST`` returns them: others may
have taken some since. Returns the epoch, and of those that the dead still have ``visitor:key:size`` and the event; -1 and
-2 alone as above."""

EXPIRE = _script("""
local before, owner, from = tonumber(ARGV[4]), ARGV[5], ARGV[6]
even_when_full()
prepare()
if lease_of(owner) > NOW then return {0, ''} end
local keys, old = keys_pending(owner, from, PAGE), {}
for _, key in ipairs(keys) do
  local member, accepted = find(owner, key)
  if member and accepted < before then old[#old + 1] = member end
end
local removed = remove(old)
return {removed, #keys == PAGE and '(' .. id_of(keys[#keys]) or ''}
""")
"""Takes a moment, an owner and where to begin. Returns how many events were erased, and where to go on."""

ABANDONED = _script("""
local owner, from = ARGV[4], ARGV[5]
local found = {}
while #found < PAGE do
  local member = redis.call('ZRANGEBYLEX', INDEX, from, '(' .. owner .. ';', 'LIMIT', 0, 1)[1]
  if not member then return {'', found} end
  found[#found + 1] = label_of(member)
  from = '[' .. string.sub(member, 1, 49) .. ';'
end
return {from, found}
""")
"""Takes an owner and where to begin. Returns where to go on, and of each visitor the oldest event as ``visitor:key:size``."""

# Refusals

CHANGES = _script("""
local doubt, ticket = tonumber(ARGV[4]), tonumber(ARGV[5])
local since, held = tonumber(ARGV[6]), tonumber(ARGV[7])
even_when_full()
prepare()
local epoch = look()
settle(doubt, ticket)
see(since)
local missed = since < number_in_state('forgotten') and 1 or 0
local refused = redis.call('ZRANGEBYSCORE', REFUSALS, '(' .. digits(since), '+inf', 'WITHSCORES')
if (pending()[WORKER] or 0) == held then return {epoch, refused, 0, missed} end
local kept = own_events(-1)
for n, member in ipairs(kept) do kept[n] = key_of(member) end
return {epoch, refused, kept, missed}
""")
"""Takes an epoch, and how many events the worker believes to have. Returns the present epoch, who declined after the
other one and when, the keys of the worker's events, or 0 where they are as many, and whether refusals after the other
epoch were forgotten: the worker was away for too long, or Redis had lost that there is such a worker."""

ERASE = _script("""
local visitor, channel = ARGV[4], ARGV[5]
even_when_full()
prepare()
local epoch = epoch_now() + 1
redis.call('HSET', STATE, 'epoch', epoch)
redis.call('ZADD', REFUSALS, epoch, visitor)
for _, owner in ipairs(redis.call('ZRANGE', WORKERS, 0, -1)) do remove(of_visitor(owner, visitor, -1)) end
forget_refusals()
redis.pcall('PUBLISH', channel, epoch)  -- who may not publish is heard a little later
return {epoch}
""")

UNHEARD = _script("""
local epoch, fresh, unheard = tonumber(ARGV[4]), tonumber(ARGV[5]), 0
local time = server_time()
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. string.format('%.17g', NOW), '+inf')) do
  local heard, at = string.match(redis.call('HGET', LOOKS, worker) or '', '^(%d+) ([%d.]+)$')
  local knows = heard and (tonumber(heard) >= epoch or time - at > fresh)
  if worker ~= WORKER and not knows then unheard = unheard + 1 end
end
return {unheard}
""")
"""Takes an epoch, and the seconds for which a look counts. Returns how many others may still send with an older one."""

# For people

SHELF = _script("""
local have, unclaimed = pending(), 0
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', NOW)) do
  unclaimed = unclaimed + (have[worker] or 0)
end
local living = redis.call('ZCOUNT', WORKERS, '(' .. string.format('%.17g', NOW), '+inf')
return {redis.call('XLEN', EVENTS), number_in_state('size'), living, unclaimed}
""")

ROWS = _script("""
local from, to, count, whole = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1'
if redis.call('EXISTS', EVENTS) == 0 then return {'', {}} end
local rows, page = {}, redis.call('XPENDING', EVENTS, GROUP, from, to, count)
for _, one in ipairs(page) do
  local key, owner = string.match(one[1], '^%d+'), one[2]
  local member, event = find(owner, tonumber(key)), redis.call('HGET', BODIES, key)
  if member and event then
    local held = lease_of(owner) > NOW and 1 or 0
    rows[#rows + 1] = {key, held, size_of(member), whole and event or string.match(event, '^[^\\n]*')}
  end
end
return {#page == count and '(' .. page[#page][1] or '', rows}
""")
"""Takes where to begin and to end, how many at most, and whether with their bodies. Returns where to go on, and of each
event, oldest first, the key, whether it belongs to a living worker, the bytes of its body, and the event."""

KEYS = _script("""
local keys = {}
for _, entry in ipairs(redis.call('XRANGE', EVENTS, ARGV[4], '+', 'COUNT', ARGV[5])) do
  keys[#keys + 1] = string.match(entry[1], '^%d+')
end
return keys
""")
"""Takes where to begin, and how many at most. Returns the keys of events, oldest first."""

PURGE = _script("""
local channel = ARGV[4]
if redis.call('EXISTS', EVENTS) == 0 then return {0, 0} end
even_when_full()
local members = {}
for n = 5, #ARGV do
  local id = ARGV[n] .. '-0'
  local entry = redis.call('XPENDING', EVENTS, GROUP, id, id, 1)[1]
  if entry then members[#members + 1] = find(entry[2], tonumber(ARGV[n])) end
end
local removed, epoch = remove(members), epoch_now()
if removed > 0 then
  epoch = redis.call('HINCRBY', STATE, 'epoch', 1)
  redis.pcall('PUBLISH', channel, epoch)
end
return {epoch, removed}
""")
"""Takes keys of events, each once. Returns the epoch, a new one where there were any, and how many there were."""
