"""What the Redis engine has its server do: where things lie, and one script for each verb. Redis runs a script whole and alone, so each is one step.

KEYS: what our names begin with; what the names of results begin with.
ARGV: the verb's arguments; and for the verbs that must not happen twice a pen and a number, twenty digits, so that numbers compare as text. A pen's numbers only grow: the last one
again is a repeat, and a smaller one comes too late.

body    id → "token crashes interruptions priority      nodes    node → its registration, JSON
        queue", a new line, the message as JSON          leases   node, by when its lease runs out
r:queue id, by place: the ready ones                     holders  nodes that may hold something
s:queue priority..id, by when it is due                  l:node   id → "process token place number length-of-queue queue node": its lease
since   id → place, of those that were released for a    ending   id → what to do when this leased one comes back: it was revoked
        later time                                       revokes  id, by until when it is remembered
d:queue id, in the order of death                        queues   queue → "by …" who paused it, or "": those that may hold something
dead    id → what is known of it, reason, time           w:queue  "!" something is ready, "~" something comes due earlier than was known
deadbody id → as in body                                 n, taken, deaths  the last place, the numbers of reservations and of dead letters
b:, bw:address  letters, and their token                 p:, x:pen  what a pen did last
j:join  size, enlarged (by how many, before it had a size), arrived, failed, then, left (how many have still to leave), by (whose arrival completed it),
        and index → arrival
t:task  name of a step → {result, failed, event, until, number}      a:event  {task, step} of each that waits for it
e:event what it brought when it occurred last                        touched  task, by when something last happened to its steps

first   does not exist. A script whose first write needs no memory may go on when the server has none left: so what is there is still worked off, and leases
        are renewed, while new tasks are refused.

A place is a number: when the message became ready, in ticks of 10 µs, less a BAND for each step of priority. So the first place is the best, then the oldest, and
no two messages that were published have the same one. All of it fits into the 53 bits that a score has.

Reserving and settling does as little as it can for each message: what a script leaves to Lua's collector costs more than what it asks of Redis. So a lease lies beside the message,
which is not written again, and a settlement that only ends a message is three strings in three lists (`fast`).
"""

from __future__ import annotations

PEN_SECONDS = 60
"""How long a repeat is known for one."""
TICKS = 100_000
"""In a second."""
BAND = 900_000_000_000_000
FOREVER = 1e15
"""When a message is due that waits for an event alone."""

START = (
    f"local PEN_SECONDS, TICKS, BAND, FOREVER = {PEN_SECONDS}, {TICKS}, {BAND}, {FOREVER:.0f}"
    + """
local P, R, call, pack, open, format = KEYS[1], KEYS[2], redis.call, cmsgpack.pack, cmsgpack.unpack, string.format
local BODY = P .. 'body'
local A = open(ARGV[1])
local now, mono, ttl, index = A[1], A[2], A[3], A[4]
if not now then
  local t = call('TIME')
  now = t[1] + t[2] / 1000000
  mono = now
end
"""
)
FUNCTIONS = """
local wakes = {}
local function tick(at) return math.min(math.floor(at * TICKS), BAND - 1) end
-- Lua hands over some thousand values at most.
local function each(command, key, things)
  for i = 1, #things, 2000 do call(command, key, unpack(things, i, math.min(i + 1999, #things))) end
end
local function many(command, key, things)
  if #things <= 2000 then return #things == 0 and {} or call(command, key, unpack(things)) end
  local found = {}
  for i = 1, #things, 2000 do
    local part = call(command, key, unpack(things, i, math.min(i + 1999, #things)))
    for j = 1, #part do found[#found + 1] = part[j] or false end
  end
  return found
end
"""
HEAD = START + FUNCTIONS

# What the texts say: of a message, and of a lease.
READING = """
local function read_head(text)
  local token, crashes, interruptions, priority, queue = text:match('^(%d+) (%d+) (%d+) (%d+) ([^\\n]*)\\n')
  if queue and queue:find('\\\\', 1, true) then queue = queue:gsub('\\\\(.)', {n = '\\n', ['\\\\'] = '\\\\'}) end
  return queue, tonumber(priority), tonumber(token), tonumber(crashes), tonumber(interruptions)
end
local function read_lease(text)
  local process, token, place, number, length, at = text:match('^(%d+) (%d+) (%S+) (%d+) (%d+) ()')
  return text:sub(at, at + length - 1), tonumber(place), tonumber(process), tonumber(token), tonumber(number)
end
local function holding(id)
  for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
    local lease = call('HGET', P .. 'l:' .. node, id)
    if lease then return lease, node end
  end
end
"""

# → ready, or scheduled. What is ready or comes due is announced at the end.
PUBLISHING = """
local last
local later = 0
local function new_place(priority)
  last = math.max((last or tonumber(call('GET', P .. 'n') or 0)) + 1, tick(now))
  return last - priority * BAND
end
local function priority_of(place) return 0 - math.floor(place / BAND) end
local function ready(queue, place, id)
  call('ZADD', P .. 'r:' .. queue, place, id)
  wakes[queue] = '!'
end
local function schedule(queue, priority, id, due)
  local first = call('ZRANGE', P .. 's:' .. queue, 0, 0, 'WITHSCORES')[2]
  call('ZADD', P .. 's:' .. queue, due, priority .. id)
  if not wakes[queue] then wakes[queue] = '' end
  if wakes[queue] == '' and (not first or due < tonumber(first)) then wakes[queue] = '~' end
end
local function publish(row, token)
  local id, queue, priority, due = row[1], row[2], row[3], row[5]
  if call('HSETNX', BODY, id, token and token .. row[6]:sub(2) or row[6]) == 0 then return end
  if row[4] then due = now + row[4] end
  if due and due > now then
    -- Those of one list with the same time come in its order: that is the smallest step between two times that a score can tell apart.
    schedule(queue, priority, id, due + later / 4194304)
    later = later + 1
  else
    ready(queue, new_place(priority), id)
  end
end
"""

KEEPING = "if last then call('SET', P .. 'n', format('%.0f', last)) end\n"
ANNOUNCING = """
for queue, token in pairs(wakes) do
  local paused = call('HGET', P .. 'queues', queue)
  if not paused then call('HSET', P .. 'queues', queue, '') end
  if token ~= '' and (paused or '') == '' then call('ZADD', P .. 'w:' .. queue, 0, token) end
end
"""

STORING = """
local function is_ready(text)
  local good, found = pcall(cjson.decode, text)
  local status = good and type(found) == 'table' and found.status
  return status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED'
end
local function store(record)
  local key = R .. record[1]
  if not record[2] then
    local known = call('GET', key)
    if known and is_ready(known) then return false end
  end
  if ttl then call('PSETEX', key, ttl, record[3]) else call('SET', key, record[3]) end
  if index then call('ZADD', P .. 'stored', now, record[1]) end
  call('PUBLISH', key, record[3])
  return true
end
"""

# Each of these but `enlarge` and `leave_join` returns the rows that are to be published now. With `again` a call that is repeated gets them again, if it was this that completed the join.
JOINING = """
local NOTHING, OPENED, SEALED = {}, '-1', '-2'
local function touch(key, id)
  if ttl then call('PEXPIRE', key, ttl) end
  if index then call('ZADD', P .. 'joined', now, id) end
end
local function completed(key, by, again)
  local found = call('HMGET', key, 'by', 'size', 'arrived')
  if found[1] then
    if not (again and found[1] == by) then return NOTHING end
  elseif not found[2] or tonumber(found[3]) < tonumber(found[2]) then
    return NOTHING
  else
    call('HSET', key, 'by', by)
  end
  return open(call('HGET', key, 'then'))
end
local function open_join(j, again)
  local id, key = j[1], P .. 'j:' .. j[1]
  if call('HSETNX', key, 'then', pack(j[3])) == 1 then
    call('HSET', key, 'arrived', 0, 'failed', 0, 'left', math.max(1, #j[3]))
    if j[2] then call('HSET', key, 'size', j[2]) end
    touch(key, id)
  end
  return completed(key, OPENED, again)
end
local function enlarge(id, more)
  local key = P .. 'j:' .. id
  local found = call('HMGET', key, 'then', 'by', 'size')
  if not found[1] or found[2] then return end
  call('HINCRBY', key, found[3] and 'size' or 'enlarged', more)
  touch(key, id)
end
local function seal(id, size, again)
  local key = P .. 'j:' .. id
  local found = call('HMGET', key, 'arrived', 'size', 'enlarged')
  if not found[1] then return NOTHING end
  if not found[2] then
    call('HSET', key, 'size', size + (found[3] or 0))
    touch(key, id)
  end
  return completed(key, SEALED, again)
end
local function arrive(a, again)
  local id, key = a[1], P .. 'j:' .. a[1]
  if call('EXISTS', key) == 0 then return NOTHING end
  if call('HSETNX', key, a[2], a[3]) == 1 then
    call('HINCRBY', key, 'arrived', 1)
    if a[4] then call('HINCRBY', key, 'failed', 1) end
    touch(key, id)
  end
  return completed(key, a[2], again)
end
-- The arrivals of one join in columns: which of `ended` they belong to, indexes, texts, whether they had failed.
local function arrive_together(id, ended, numbers, indexes, texts, failures)
  local key = P .. 'j:' .. id
  if call('EXISTS', key) == 0 then return NOTHING end
  local known, new, count, failed = many('HMGET', key, indexes), {}, 0, 0
  for i, index in ipairs(indexes) do
    if ended[numbers[i]] and not known[i] and not new[index] then
      count, new[index] = count + 1, texts[i]
      if failures[i] then failed = failed + 1 end
    end
  end
  if count == 0 then return NOTHING end
  local pairs_of, last_index = {}, nil
  for index, text in pairs(new) do
    pairs_of[#pairs_of + 1], pairs_of[#pairs_of + 2], last_index = index, text, index
  end
  each('HSET', key, pairs_of)
  call('HINCRBY', key, 'arrived', count)
  if failed > 0 then call('HINCRBY', key, 'failed', failed) end
  touch(key, id)
  return completed(key, last_index)
end
local function leave_join(id)
  local key = P .. 'j:' .. id
  if call('EXISTS', key) == 0 then return end
  if call('HINCRBY', key, 'left', -1) > 0 then
    touch(key, id)
  else
    call('UNLINK', key)
    if index then call('ZREM', P .. 'joined', id) end
  end
end
"""

# Steps of tasks. `pause` returns until when the task waits, or nothing if there is nothing to wait for.
STEPPING = """
local RESULT, FAILED, EVENT, UNTIL, NUMBER = 1, 2, 3, 4, 5
local function get_step(task, name)
  local packed = call('HGET', P .. 't:' .. task, name)
  return packed and open(packed)
end
local function keep_step(task, name, step)
  call('HSET', P .. 't:' .. task, name, pack(step))
  call('ZADD', P .. 'touched', now, task)
end
local function end_step(task, name, step, result, failed)
  if step[EVENT] then call('SREM', P .. 'a:' .. step[EVENT], pack({task, name})) end
  step[RESULT], step[FAILED] = result, failed
  keep_step(task, name, step)
end
local function pause(task, name, event, seconds)
  local step = get_step(task, name)
  if not step then
    step = {false, false, event or false, seconds and now + seconds or false, call('HLEN', P .. 't:' .. task)}
    keep_step(task, name, step)
  end
  if step[RESULT] then return end
  if step[EVENT] then
    local value = call('GET', P .. 'e:' .. step[EVENT])
    if value then return end_step(task, name, step, value, false) end
    call('SADD', P .. 'a:' .. step[EVENT], pack({task, name}))
  end
  local till = step[UNTIL] or FOREVER
  if till > now then return till end
end
local function forget(task)
  local found = call('HGETALL', P .. 't:' .. task)
  if #found == 0 then return end
  for i = 1, #found, 2 do
    local step = open(found[i + 1])
    if step[EVENT] and not step[RESULT] then call('SREM', P .. 'a:' .. step[EVENT], pack({task, found[i]})) end
  end
  call('DEL', P .. 't:' .. task)
  call('ZREM', P .. 'touched', task)
end
"""

# leased → somewhere else.
MOVING = """
local function publish_all(rows)
  for i = 1, #rows do publish(rows[i]) end
end
local function conclude(record, arrival)
  if record then store(record) end
  if arrival then publish_all(arrive(arrival)) end
end
local function is_revoked(id) return call('HEXISTS', P .. 'ending', id) == 1 end
local function end_revoked(id)
  local ending = open(call('HGET', P .. 'ending', id))
  call('HDEL', P .. 'ending', id)
  call('HDEL', BODY, id)
  forget(id)
  conclude(ending[1], ending[2])
end
local function give_back(id, queue, place, text, crashed, delay)
  local token, crashes, interruptions, rest = text:match('^(%d+) (%d+) (%d+)( .*)$')
  if rest then
    if crashed then crashes = crashes + 1 else interruptions = interruptions + 1 end
    text = format('%d %d %d', token + 1, crashes, interruptions) .. rest
  end
  call('HSET', BODY, id, text)
  if delay > 0 then
    call('HSET', P .. 'since', id, place)
    schedule(queue, priority_of(place), id, now + delay)
  else
    ready(queue, place, id)
  end
end
local function leave(node, crashed)
  local hand = P .. 'l:' .. node
  local held, rows, ids = call('HGETALL', hand), {}, {}
  for i = 1, #held, 2 do
    local queue, place, _, _, number = read_lease(held[i + 1])
    rows[#rows + 1] = {held[i], queue, place, number}
  end
  table.sort(rows, function(a, b) if a[4] ~= b[4] then return a[4] < b[4] end return a[3] < b[3] end)
  call('HDEL', P .. 'nodes', node)
  call('ZREM', P .. 'leases', node)
  call('SREM', P .. 'holders', node)
  call('DEL', hand)
  for i, row in ipairs(rows) do
    local id = row[1]
    ids[i] = id
    if is_revoked(id) then end_revoked(id) else give_back(id, row[2], row[3], call('HGET', BODY, id) or '', crashed, 0) end
  end
  return ids
end
"""

# Returns when the first of the others is due, unless some were promoted.
PROMOTING = """
local function promote(queue)
  local key = P .. 's:' .. queue
  local first = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  if not first or first > now then return first end
  local due = call('ZRANGEBYSCORE', key, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
  call('DEL', P .. 'first')
  local members, ids, places, at = {}, {}, {}, 0
  for i = 1, #due, 2 do
    at = math.max(at + 1, tick(tonumber(due[i + 1])))
    members[#members + 1], ids[#ids + 1] = due[i], due[i]:sub(2)
    places[i], places[i + 1] = at - due[i]:sub(1, 1) * BAND, ids[#ids]
  end
  if call('EXISTS', P .. 'since') == 1 then
    local since = call('HMGET', P .. 'since', unpack(ids))
    for i = 1, #ids do places[2 * i - 1] = since[i] or places[2 * i - 1] end
    call('HDEL', P .. 'since', unpack(ids))
  end
  call('ZADD', P .. 'r:' .. queue, unpack(places))
  call('ZREM', key, unpack(members))
end
"""

# What delay() does, a message for now, comes first, without a function: they would be half of the cost.
PUBLISH = (
    START
    + """
local pen = P .. 'p:' .. ARGV[2]
if (call('GET', pen) or '') >= ARGV[3] then return 0 end
local rows = A[5]
local row = rows[1]
if #rows == 1 and not row[4] and not row[5] and #A[6] == 0 then
  if call('HSETNX', BODY, row[1], row[6]) == 1 then
    local queue, last = row[2], math.floor(now * TICKS)
    local before = tonumber(call('SET', P .. 'n', format('%.0f', last), 'GET') or 0)
    if before >= last then
      last = before + 1
      call('SET', P .. 'n', format('%.0f', last))
    end
    call('ZADD', P .. 'r:' .. queue, last - row[3] * BAND, row[1])
    local paused = call('HGET', P .. 'queues', queue)
    if not paused then call('HSET', P .. 'queues', queue, '') end
    if (paused or '') == '' then call('ZADD', P .. 'w:' .. queue, 0, '!') end
  end
else
"""
    + FUNCTIONS
    + PUBLISHING
    + JOINING
    + """
  local then_rows = {}
  for _, j in ipairs(A[6]) do
    for _, row in ipairs(open_join(j)) do then_rows[#then_rows + 1] = row end
  end
  for _, row in ipairs(rows) do publish(row) end
  for _, row in ipairs(then_rows) do publish(row) end
"""
    + KEEPING
    + ANNOUNCING
    + """
end
call('SET', pen, ARGV[3], 'EX', PEN_SECONDS)
return 1
"""
)

EXCHANGE = (
    HEAD
    + """
local node, process, queues, limit, fast, slow = A[5], A[6], A[7], A[8], A[9], A[10]
if node and call('HEXISTS', P .. 'nodes', node) == 0 then return redis.error_reply('NODELOST The node is not registered.') end
if fast or #slow > 0 then call('DEL', P .. 'first') end
local some_revoked = call('EXISTS', P .. 'revokes', P .. 'ending') > 0
local pen, done, refused, before = P .. 'x:' .. ARGV[2], {}, {}, nil
local last_number = call('GETRANGE', pen, 0, 19)
if last_number > ARGV[3] then return redis.error_reply('LATE The node has asked again since.') end
if last_number == ARGV[3] then
  before = open(call('GET', pen):sub(21))
  done = before[1]
  local settled = {}
  for _, id in ipairs(done) do settled[id] = true end
  for _, id in ipairs(fast and fast[2] or {}) do if not settled[id] then refused[#refused + 1] = id end end
  for _, s in ipairs(slow) do if not settled[s[1]] then refused[#refused + 1] = s[1] end end
end

local ended = {}
if fast and not before then
  -- All of one node, all done, nothing follows but what their joins bring.
  local hand, ids, leases, records = P .. 'l:' .. fast[1], fast[2], fast[3], fast[4]
  local held = many('HMGET', hand, ids)
  for i = 1, #ids do
    local id = ids[i]
    if held[i] == leases[i] then
      done[#done + 1], ended[i] = id, true
      local record = records[i]
      if record then
        local key = R .. id
        if ttl then call('PSETEX', key, ttl, record) else call('SET', key, record) end
        if index then call('ZADD', P .. 'stored', now, id) end
        call('PUBLISH', key, record)
      end
    else
      refused[#refused + 1] = id
    end
  end
  if #done > 0 then
    each('HDEL', hand, done)
    each('HDEL', BODY, done)
    if some_revoked then each('HDEL', P .. 'ending', done) end
  end
end

if (#slow > 0 or fast and #fast[5] > 0) and not before then
"""
    + READING
    + PUBLISHING
    + STORING
    + JOINING
    + STEPPING
    + MOVING
    + """
  local function move(s)
    local id, verdict, hand = s[1], s[2], P .. 'l:' .. s[3]
    local lease = call('HGET', hand, id)
    if not lease or lease:sub(1, #s[4]) ~= s[4] then return false end
    local queue, place, _, token = read_lease(lease)
    call('HDEL', hand, id)
    if is_revoked(id) then
      if verdict ~= 'done' and verdict ~= 'dead' then
        end_revoked(id)
        return true
      end
      call('HDEL', P .. 'ending', id)
    end
    if verdict == 'done' then
      call('HDEL', BODY, id)
    elseif verdict == 'retry' then
      local row = s[7] or {id, queue, priority_of(place), false, false, ((call('HGET', BODY, id) or ''):gsub('^%d+ %d+ %d+', '0 0 0'))}
      call('HDEL', BODY, id)
      if s[14] then
        call('HSET', BODY, id, token .. row[6]:sub(2))
        local till = pause(id, unpack(s[14], 1, 3))
        if till then schedule(row[2], row[3], id, till) else ready(row[2], new_place(row[3]), id) end
      else
        publish(row, token)
      end
    elseif verdict == 'dead' then
      local text = call('HGET', BODY, id) or ''
      local _, _, _, crashes, interruptions = read_head(text)
      local old = call('HGET', P .. 'dead', id)
      if old then call('ZREM', P .. 'd:' .. open(old)[1], id) end
      call('HSET', P .. 'dead', id, pack({queue, place, token, crashes or 0, interruptions or 0, s[5], now}))
      call('HSET', P .. 'deadbody', id, text)
      call('ZADD', P .. 'd:' .. queue, call('INCR', P .. 'deaths'), id)
      call('HSETNX', P .. 'queues', queue, '')
      call('HDEL', BODY, id)
    else
      local text = call('HGET', BODY, id) or ''
      if s[7] then
        queue, place = s[7][2], place % BAND - s[7][3] * BAND
        text = (text:match('^%d+ %d+ %d+') or '0 0 0') .. s[7][6]:sub(6)
      end
      give_back(id, queue, place, text, verdict == 'crashed', verdict == 'released' and s[6] or 0)
    end
    return true
  end
  local settled = {}
  for _, s in ipairs(slow) do
    if s[3] and not move(s) then
      refused[#refused + 1] = s[1]
    else
      done[#done + 1], settled[#settled + 1] = s[1], s
      for _, record in ipairs(s[8]) do store(record) end
      for _, j in ipairs(s[10]) do publish_all(open_join(j)) end
      for _, more in ipairs(s[11]) do enlarge(more[1], more[2]) end
      publish_all(s[9])
      if s[15] then forget(s[1]) end
    end
  end
  for _, s in ipairs(settled) do
    if s[12] then publish_all(arrive(s[12])) end
  end
  for _, j in ipairs(fast and fast[5] or {}) do publish_all(arrive_together(j[1], ended, j[2], j[3], j[4], j[5])) end
  for _, s in ipairs(settled) do
    if s[13] then leave_join(s[13]) end
  end
"""
    + KEEPING
    + """
end

local leases, bodies, revoked, number, outlook = {}, {}, {}, nil, ''
if before then
  for _, id in ipairs(before[2]) do
    local lease = call('HGET', P .. 'l:' .. node, id)
    if lease and lease:match('^%d+ %d+ %S+ (%d+)') == before[3] then leases[#leases + 1], leases[#leases + 2] = id, lease end
  end
  local ids = {}
  for i = 1, #leases, 2 do ids[#ids + 1] = leases[i] end
  bodies = many('HMGET', BODY, ids)
elseif node and limit > 0 then
"""
    + PROMOTING
    + """
  local open_queues, popped, from, nearest = {}, {}, nil, nil
  for _, queue in ipairs(queues) do
    if (call('HGET', P .. 'queues', queue) or '') == '' then
      local due = promote(queue)
      if due and (not nearest or due < nearest) then nearest = due end
      open_queues[#open_queues + 1] = queue
    end
  end
  if #open_queues == 1 then
    popped = call('ZPOPMIN', P .. 'r:' .. open_queues[1], limit)
  else
    -- The best of the heads of all queues, again and again.
    local heads = {}
    from = {}
    for i, queue in ipairs(open_queues) do heads[i] = {1, call('ZRANGE', P .. 'r:' .. queue, 0, limit - 1, 'WITHSCORES'), queue} end
    while #from < limit do
      local best, place
      for _, head in ipairs(heads) do
        local p = tonumber(head[2][head[1] + 1])
        if p and (not best or p < place) then best, place = head, p end
      end
      if not best then break end
      popped[#popped + 1], popped[#popped + 2], from[#from + 1] = best[2][best[1]], best[2][best[1] + 1], best[3]
      best[1] = best[1] + 2
    end
    for _, head in ipairs(heads) do
      local taken = (head[1] - 1) / 2
      if taken > 0 then call('ZREMRANGEBYRANK', P .. 'r:' .. head[3], 0, taken - 1) end
    end
  end
  local ids, kept = {}, 0
  if #popped > 0 then
    for i = 1, #popped, 2 do ids[#ids + 1] = popped[i] end
    bodies = many('HMGET', BODY, ids)
    number = call('INCR', P .. 'taken')
    local fresh, ends = process .. ' 1 ', {}
    for _, queue in ipairs(open_queues) do ends[queue] = format(' %d %d %s %s', number, #queue, queue, node) end
    local tail = ends[open_queues[1]]
    for i = 1, #ids do
      local body = bodies[i]
      if body then
        local head = fresh
        if body:sub(1, 2) ~= '0 ' then head = format('%d %d ', process, (body:match('^%d+') or 0) + 1) end
        kept = kept + 1
        ids[kept], bodies[kept], leases[2 * kept - 1] = ids[i], body, ids[i]
        leases[2 * kept] = head .. popped[2 * i] .. (from and ends[from[i]] or tail)
      end
    end
    for i = #ids, kept + 1, -1 do ids[i], bodies[i] = nil, nil end
    if kept > 0 then each('HSET', P .. 'l:' .. node, leases) end
  end
  for _, queue in ipairs(open_queues) do
    if (from or #popped == 2 * limit) and call('EXISTS', P .. 'r:' .. queue) == 1 then
      call('ZADD', P .. 'w:' .. queue, 0, '!')
    else
      call('ZREM', P .. 'w:' .. queue, '!')
    end
    if wakes[queue] == '!' then wakes[queue] = '' end
  end
  if nearest then outlook = format('%.6f', nearest - now) end
end
if next(wakes) then
"""
    + ANNOUNCING
    + """
end
if #leases > 0 and some_revoked then
  for i = 1, #leases, 2 do
    local til = call('ZSCORE', P .. 'revokes', leases[i])
    if til and tonumber(til) > now then revoked[#revoked + 1] = leases[i] end
  end
end
if not before and (#done > 0 or #leases > 0) then
  local ids = {}
  for i = 1, #leases, 2 do ids[#ids + 1] = leases[i] end
  call('SET', pen, ARGV[3] .. pack({done, ids, number and format('%d', number)}), 'EX', PEN_SECONDS)
end
return {format('%.6f', now), refused, leases, bodies, revoked, outlook}
"""
)

# What a node asked before, and got no answer to, comes too late from now on: those pens' numbers are passed.
HELD = (
    HEAD
    + """
for _, pen in ipairs(A[6]) do call('SET', P .. 'x:' .. pen[1], pen[2], 'EX', PEN_SECONDS) end
local leases, ids, revoked = call('HGETALL', P .. 'l:' .. A[5]), {}, {}
for i = 1, #leases, 2 do
  ids[#ids + 1] = leases[i]
  local til = call('ZSCORE', P .. 'revokes', leases[i])
  if til and tonumber(til) > now then revoked[#revoked + 1] = leases[i] end
end
return {format('%.6f', now), {}, leases, many('HMGET', BODY, ids), revoked}
"""
)

REVOKE = (
    HEAD
    + READING
    + PUBLISHING
    + STORING
    + JOINING
    + STEPPING
    + MOVING
    + """
local answers = {}
call('ZREMRANGEBYSCORE', P .. 'revokes', '-inf', now)
for i, r in ipairs(A[5]) do
  local id, text = r[1], call('HGET', BODY, r[1])
  local queue, priority = read_head(text or '')
  if queue and (call('ZREM', P .. 'r:' .. queue, id) == 1 or call('ZREM', P .. 's:' .. queue, priority .. id) == 1) then
    call('HDEL', P .. 'since', id)
    call('HDEL', BODY, id)
    forget(id)
    conclude(r[2], r[3])
    answers[i] = 'waiting'
  else
    call('ZADD', P .. 'revokes', now + A[6], id)
    answers[i] = 'unknown'
    local lease, node = holding(id)
    if lease then
      answers[i] = 'running'
      call('HSET', P .. 'ending', id, pack({r[2] or false, r[3] or false}))
      if r[4] then
        local box, bell = P .. 'b:' .. node, P .. 'bw:' .. node
        call('RPUSH', box, format('%.6f ', mono) .. r[4])
        call('EXPIRE', box, A[7])
        call('ZADD', bell, 0, '!')
        call('EXPIRE', bell, A[7])
      end
    end
  end
end
"""
    + KEEPING
    + ANNOUNCING
    + """
return answers
"""
)

REGISTER = (
    HEAD
    + """
call('DEL', P .. 'first')
call('HSET', P .. 'nodes', A[5], A[6])
call('SADD', P .. 'holders', A[5])
call('ZADD', P .. 'leases', mono + A[7], A[5])
return 1
"""
)
HEARTBEAT = (
    HEAD
    + """
if call('HEXISTS', P .. 'nodes', A[5]) == 0 then return 0 end
call('DEL', P .. 'first')
call('ZADD', P .. 'leases', mono + A[6], A[5])
return 1
"""
)
NODES = (
    HEAD
    + """
return {format('%.6f', mono), call('HGETALL', P .. 'nodes'), call('ZRANGE', P .. 'leases', 0, -1, 'WITHSCORES')}
"""
)
LEAVING = HEAD + READING + PUBLISHING + STORING + JOINING + STEPPING + MOVING
UNREGISTER = LEAVING + "leave(A[5], false)\n" + KEEPING + ANNOUNCING + "return 1"
RECLAIM = (
    LEAVING
    + """
local lost, seen, ids = {}, {}, {}
local function add(node)
  if not seen[node] then
    seen[node] = true
    lost[#lost + 1] = node
  end
end
for _, node in ipairs(A[5]) do add(node) end
for _, node in ipairs(call('ZRANGEBYSCORE', P .. 'leases', '-inf', mono)) do add(node) end
for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
  if call('HEXISTS', P .. 'nodes', node) == 0 then add(node) end
end
for _, node in ipairs(lost) do
  for _, id in ipairs(leave(node, true)) do ids[#ids + 1] = id end
end
"""
    + KEEPING
    + ANNOUNCING
    + """
return ids
"""
)

OUTLOOK = (
    HEAD
    + """
local nearest
for _, queue in ipairs(A[5]) do
  if (call('HGET', P .. 'queues', queue) or '') == '' then
    if call('EXISTS', P .. 'r:' .. queue) == 1 then return '0' end
    local due = call('ZRANGE', P .. 's:' .. queue, 0, 0, 'WITHSCORES')[2]
    if due and (not nearest or tonumber(due) < nearest) then nearest = tonumber(due) end
  end
end
return nearest and format('%.6f', nearest - now) or ''
"""
)

STORE = (
    HEAD
    + STORING
    + """
local refused, fence = {}, A[6]
for _, record in ipairs(A[5]) do
  local lease = fence and call('HGET', P .. 'l:' .. fence[1], record[1])
  if fence and not (lease and lease:sub(1, #fence[2]) == fence[2]) or not store(record) then
    refused[#refused + 1] = record[1]
  end
end
return refused
"""
)
FORGET = (
    HEAD
    + """
for _, id in ipairs(A[5]) do
  call('DEL', R .. id)
  if index then call('ZREM', P .. 'stored', id) end
end
return 1
"""
)
PRUNE = (
    HEAD
    + STEPPING
    + """
call('ZREMRANGEBYSCORE', P .. 'revokes', '-inf', now)
if not ttl then return 0 end
local limit, horizon = A[5], format('(%.6f', now - ttl / 1000)
-- The clock may have been set back: what claims to come from the future is of now.
for _, task in ipairs(call('ZRANGEBYSCORE', P .. 'touched', format('(%.17g', now), '+inf', 'LIMIT', 0, limit)) do call('ZADD', P .. 'touched', now, task) end
for _, task in ipairs(call('ZRANGEBYSCORE', P .. 'touched', '-inf', horizon, 'LIMIT', 0, limit)) do
  if call('HEXISTS', BODY, task) == 1 or call('HEXISTS', P .. 'dead', task) == 1 then call('ZADD', P .. 'touched', now, task) else forget(task) end
end
if not index then return 0 end
local function remove_old(names, key)
  local old = call('ZRANGEBYSCORE', P .. names, '-inf', horizon, 'LIMIT', 0, limit)
  for _, name in ipairs(old) do
    call('DEL', key .. name)
    call('ZREM', P .. names, name)
  end
  return #old
end
remove_old('joined', P .. 'j:')
remove_old('occurred', P .. 'e:')
return remove_old('stored', R)
"""
)

SEAL = (
    HEAD
    + PUBLISHING
    + JOINING
    + """
for _, row in ipairs(seal(A[5], A[6])) do publish(row) end
"""
    + KEEPING
    + ANNOUNCING
    + "return 1"
)
JOINS = (
    HEAD
    + """
local found = {}
for i, id in ipairs(A[5]) do found[i] = call('HMGET', P .. 'j:' .. id, 'size', 'arrived', 'failed') end
return found
"""
)
ARRIVALS = HEAD + "return call('HGETALL', P .. 'j:' .. A[5])"
# A list of those that were completed by what this call says, now or when it was sent before.
ARRIVE = (
    HEAD
    + JOINING
    + """
local arrivals, opens, enlarges, seals, texts = A[5], A[6], A[7], A[8], {}
local pen = P .. 'p:' .. ARGV[2]
local function add(rows)
  for _, row in ipairs(rows) do texts[#texts + 1] = row[6] end
end
for _, j in ipairs(opens) do add(open_join(j, true)) end
local first = arrivals[1]
if not (first and call('HEXISTS', P .. 'j:' .. first[1], first[2]) == 1) and (call('GET', pen) or '') < ARGV[3] then
  for _, more in ipairs(enlarges) do enlarge(more[1], more[2]) end
end
for _, s in ipairs(seals) do add(seal(s[1], s[2], true)) end
for _, a in ipairs(arrivals) do add(arrive(a, true)) end
call('SET', pen, ARGV[3], 'EX', PEN_SECONDS)
return texts
"""
)
LEAVE = (
    HEAD
    + JOINING
    + """
local pen = P .. 'p:' .. ARGV[2]
if (call('GET', pen) or '') >= ARGV[3] then return 0 end
for _, id in ipairs(A[5]) do leave_join(id) end
call('SET', pen, ARGV[3], 'EX', PEN_SECONDS)
return 1
"""
)

REMEMBER = (
    HEAD
    + STEPPING
    + """
local task, name, result, failed, fence = A[5], A[6], A[7], A[8], A[9]
if fence then
  local lease = call('HGET', P .. 'l:' .. fence[1], task)
  if not lease or lease:sub(1, #fence[2]) ~= fence[2] then return false end
end
local step = get_step(task, name) or {false, false, false, false, call('HLEN', P .. 't:' .. task)}
if not step[RESULT] then end_step(task, name, step, result, failed) end
return pack(step)
"""
)
RECALL = HEAD + "return call('HGETALL', P .. 't:' .. A[5])"
OCCUR = (
    HEAD
    + READING
    + PUBLISHING
    + STEPPING
    + """
local event, value, tasks = A[5], A[6], {}
local key, waiting = P .. 'e:' .. event, P .. 'a:' .. event
if ttl then call('SET', key, value, 'PX', ttl) else call('SET', key, value) end
if index then call('ZADD', P .. 'occurred', now, event) end
for _, packed in ipairs(call('SMEMBERS', waiting)) do
  local task, name = unpack(open(packed))
  local step = get_step(task, name)
  if step and not step[RESULT] then
    tasks[#tasks + 1] = task
    end_step(task, name, step, value, false)
    local queue, priority = read_head(call('HGET', BODY, task) or '')
    local due = queue and call('ZSCORE', P .. 's:' .. queue, priority .. task)
    if due and tonumber(due) == (step[UNTIL] or FOREVER) then
      call('ZREM', P .. 's:' .. queue, priority .. task)
      ready(queue, new_place(priority), task)
    end
  end
end
call('DEL', waiting)
"""
    + KEEPING
    + ANNOUNCING
    + """
return tasks
"""
)

QUEUES = (
    HEAD
    + READING
    + """
local names, seen = {}, {}
local function add(queue)
  if not seen[queue] then
    seen[queue] = true
    names[#names + 1] = queue
  end
end
for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
  for _, lease in ipairs(call('HVALS', P .. 'l:' .. node)) do add((read_lease(lease))) end
end
local known = call('HGETALL', P .. 'queues')
for i = 1, #known, 2 do
  local queue, paused = known[i], known[i + 1]
  if paused ~= '' or call('EXISTS', P .. 'r:' .. queue, P .. 's:' .. queue, P .. 'd:' .. queue) > 0 then add(queue) end
end
return names
"""
)
DEPTH = (
    HEAD
    + READING
    + """
local leased, counts = {}, {}
for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
  for _, lease in ipairs(call('HVALS', P .. 'l:' .. node)) do
    local queue = read_lease(lease)
    leased[queue] = (leased[queue] or 0) + 1
  end
end
for i, queue in ipairs(A[5]) do
  local due = call('ZCOUNT', P .. 's:' .. queue, '-inf', now)
  counts[i] = {
    call('ZCARD', P .. 'r:' .. queue) + due, call('ZCARD', P .. 's:' .. queue) - due, leased[queue] or 0, call('ZCARD', P .. 'd:' .. queue),
    call('HGET', P .. 'queues', queue),
  }
end
return counts
"""
)
# {id, body, state, and of this state: place · due · place, node, process · what is known of the dead}
PEEK = (
    HEAD
    + READING
    + PROMOTING
    + """
local queue, state, first, last, ids, rows = A[5], A[6], A[7], A[7] + A[8] - 1, {}, {}
if last < first then return rows end
local function add(id, ...)
  ids[#ids + 1], rows[#rows + 1] = id, {id, '', state, ...}
end
if state == 'ready' then
  promote(queue)
  local found = call('ZRANGE', P .. 'r:' .. queue, first, last, 'WITHSCORES')
  for i = 1, #found, 2 do add(found[i], found[i + 1]) end
elseif state == 'scheduled' then
  local found = call('ZRANGEBYSCORE', P .. 's:' .. queue, format('(%.17g', now), '+inf', 'WITHSCORES', 'LIMIT', first, A[8])
  for i = 1, #found, 2 do add(found[i]:sub(2), found[i + 1]) end
elseif state == 'dead' then
  for _, id in ipairs(call('ZREVRANGE', P .. 'd:' .. queue, first, last)) do add(id, call('HGET', P .. 'dead', id)) end
else
  local held = {}
  for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
    local found = call('HGETALL', P .. 'l:' .. node)
    for i = 1, #found, 2 do
      local of, place, process = read_lease(found[i + 1])
      if of == queue then held[#held + 1] = {place, found[i], node, process} end
    end
  end
  table.sort(held, function(a, b) if a[1] ~= b[1] then return a[1] < b[1] end return a[2] < b[2] end)
  for i = first + 1, math.min(last + 1, #held) do add(held[i][2], format('%.0f', held[i][1]), held[i][3], held[i][4]) end
end
for i, body in ipairs(many('HMGET', state == 'dead' and P .. 'deadbody' or BODY, ids)) do rows[i][2] = body end
return rows
"""
)
# As in PEEK; a ready one with how many are ahead of it.
FIND = (
    HEAD
    + READING
    + PROMOTING
    + """
local found, promoted = {}, {}
for i, id in ipairs(A[5]) do
  local body = call('HGET', BODY, id)
  found[i] = false
  if body then
    local queue, priority = read_head(body)
    if queue and not promoted[queue] then
      promote(queue)
      promoted[queue] = true
    end
    local place = queue and call('ZSCORE', P .. 'r:' .. queue, id)
    local due = queue and call('ZSCORE', P .. 's:' .. queue, priority .. id)
    if place then
      found[i] = {id, body, 'ready', place, call('ZRANK', P .. 'r:' .. queue, id)}
    elseif due then
      found[i] = {id, body, 'scheduled', due}
    else
      local lease, node = holding(id)
      if lease then
        local _, at, process = read_lease(lease)
        found[i] = {id, body, 'leased', format('%.0f', at), node, process}
      end
    end
  else
    local known = call('HGET', P .. 'dead', id)
    if known then found[i] = {id, call('HGET', P .. 'deadbody', id), 'dead', known} end
  end
end
return found
"""
)
REVOKED = (
    HEAD
    + READING
    + """
local ids = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'revokes', format('(%.17g', now), '+inf')) do
  if call('HEXISTS', BODY, id) == 0 or holding(id) then ids[#ids + 1] = id end
end
return ids
"""
)
PURGE = (
    HEAD
    + """
local ids = {}
local ready = call('ZPOPMIN', P .. 'r:' .. A[5], A[6])
for i = 1, #ready, 2 do ids[#ids + 1] = ready[i] end
local scheduled = call('ZPOPMIN', P .. 's:' .. A[5], A[6])
for i = 1, #scheduled, 2 do ids[#ids + 1] = scheduled[i]:sub(2) end
each('HDEL', BODY, ids)
each('HDEL', P .. 'since', ids)
return #ids
"""
)
PAUSE = HEAD + "for _, queue in ipairs(A[5]) do call('HSET', P .. 'queues', queue, 'by ' .. A[6]) end return 1"
RESUME = (
    HEAD
    + """
for _, queue in ipairs(A[5]) do
  if (call('HGET', P .. 'queues', queue) or '') ~= '' then
    call('HSET', P .. 'queues', queue, '')
    call('ZADD', P .. 'w:' .. queue, 0, '!')
  end
end
return 1
"""
)
REPLAY = (
    HEAD
    + PUBLISHING
    + """
local replayed = {}
for _, id in ipairs(A[5]) do
  local known = call('HGET', P .. 'dead', id)
  if known and call('HEXISTS', BODY, id) == 0 then
    known = open(known)
    call('HSET', BODY, id, (call('HGET', P .. 'deadbody', id):gsub('^%d+ %d+ %d+', format('%d 0 0', known[3]))))
    ready(known[1], new_place(priority_of(known[2])), id)
    call('HDEL', P .. 'dead', id)
    call('HDEL', P .. 'deadbody', id)
    call('ZREM', P .. 'd:' .. known[1], id)
    replayed[#replayed + 1] = id
  end
end
"""
    + KEEPING
    + ANNOUNCING
    + """
return replayed
"""
)
DISCARD = (
    HEAD
    + """
local discarded = {}
for _, id in ipairs(A[5]) do
  local known = call('HGET', P .. 'dead', id)
  if known then
    call('HDEL', P .. 'dead', id)
    call('HDEL', P .. 'deadbody', id)
    call('ZREM', P .. 'd:' .. open(known)[1], id)
    discarded[#discarded + 1] = id
  end
end
return discarded
"""
)
POST = (
    HEAD
    + """
for _, address in ipairs(A[5]) do
  local box, bell = P .. 'b:' .. address, P .. 'bw:' .. address
  call('RPUSH', box, format('%.6f ', mono) .. A[6])
  call('EXPIRE', box, A[7])
  call('ZADD', bell, 0, '!')
  call('EXPIRE', bell, A[7])
end
return 1
"""
)
COLLECT = (
    HEAD
    + """
local letters = call('LRANGE', P .. 'b:' .. A[5], 0, -1)
if #letters > 0 then call('DEL', P .. 'b:' .. A[5], P .. 'bw:' .. A[5]) end
return {format('%.6f', mono), letters}
"""
)
NOW = "local t = redis.call('TIME') return t"
