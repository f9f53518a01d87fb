-- Gives messages of one room their offsets, keeps them and sends them: one round trip for the publisher, one push for
-- each subscribed node. If Redis refuses a command in the middle, either nothing is left of the messages, or they are
-- published: a caller who repeats a refused publish never repeats a message.
-- KEYS: meta, stream [, idempotency: then there is one message]
-- ARGV: channel, envelope head, fence, epoch for a new beginning, messages to keep, their ttl ms, meta ttl ms,
--       idempotency ttl ms, envelope tails...
-- Returns "+" for new messages or "=" for a repeated one, then the epoch and the offset of the first message; the
-- others have the offsets after it. If messages are kept but Redis has refused to send them or to let them expire: a
-- list of that and the error.
local meta, stream, key = KEYS[1], KEYS[2], KEYS[3]

-- A key that has been used before: return the cursor of its first publish.
if key then
  local first = redis.call('GET', key)
  if first then return '=' .. first end
end

-- Another fence: this Redis has lost the memory that gave out the last offsets (restart, failover). Begin a new epoch, as
-- if the room were unknown.
local m = redis.call('HMGET', meta, 'g', 'e')
local epoch = m[2]
if m[1] ~= ARGV[3] or not epoch or #epoch ~= 8 then epoch = begin(meta, stream, ARGV[3], ARGV[4]) end
local left, count = redis.call('PTTL', stream), #ARGV - 8

-- Take one offset for each message, and keep the key and the messages. Twice if the offsets cannot be continued.
local last, refused
for round = 1, 2 do
  last, refused = redis.pcall('HINCRBY', meta, 's', count), nil
  if type(last) == 'table' then
    refused, last = last, nil
  elseif last < count or last > OFFSET_MAX then
    refused = { err = 'ERR the last offset is not an integer in range' }
  else
    if key then
      local reply = redis.pcall('SET', key, epoch .. last, 'PX', ARGV[8])
      if reply.err then refused = reply end
    end
    for i = 1, count do
      if refused then break end
      local id = (last - count + i) .. '-0'
      local reply = redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[5], id, 'd', ARGV[8 + i])
      if type(reply) == 'table' then refused = reply end
    end
  end
  if not refused then break end

  -- Redis keeps what a script wrote before it was refused.
  if last then redis.call('HINCRBY', meta, 's', -count) end
  if key then redis.call('DEL', key) end
  redis.pcall('PEXPIRE', meta, ARGV[7]) -- it may be new
  -- The last offset cannot be read, or the stream has ids beyond it.
  local why = refused.err
  local is_broken = string.find(why, ' integer') or string.find(why, 'overflow') or string.find(why, ' ID')
  if round == 2 or not is_broken then return refused end
  epoch, left = begin(meta, stream, ARGV[3], ARGV[4]), -1
end

-- The messages are published from here on. What Redis refuses now is reported, but is no reason to publish them again.

-- The whole stream expires at once, so its time is renewed before the youngest message has less than the ttl left:
-- with a quarter in reserve that happens once per quarter, not once per message.
local ttl = tonumber(ARGV[6])
if left < ttl then
  for name, ms in pairs({ [stream] = math.floor(ttl * 1.25), [meta] = ARGV[7] }) do
    local reply = redis.pcall('PEXPIRE', name, ms)
    if type(reply) == 'table' then refused = reply end
  end
end

-- Send them in one envelope: several tails have their lengths before them.
local sent = ARGV[9]
if count > 1 then
  local parts = {}
  for i = 1, count do parts[i] = struct.pack('>I4', #ARGV[8 + i]) .. ARGV[8 + i] end
  sent = table.concat(parts)
end
local first = last - count + 1
local reply = redis.pcall('PUBLISH', ARGV[1], ARGV[2] .. epoch .. struct.pack('>I8', first) .. sent)
if type(reply) == 'table' then refused = reply end

if refused then return { '+' .. epoch .. first, refused } end
return '+' .. epoch .. first
