-- Gives messages of one room their offsets, keeps them and sends them: one round trip for the publisher, one push for
-- each subscribed node.
-- KEYS: meta, stream [, idempotency: then there is one message]
-- ARGV: channel, envelope head, fence, epoch for a new beginning, messages to keep, their ttl ms, meta ttl ms,
--       idempotency ttl ms, envelope tails...
-- Returns "+" for new messages or "=" for a repeated one, then the epoch and the offset of the first message; the
-- others have the offsets after it.
local meta, stream, key = KEYS[1], KEYS[2], KEYS[3]

-- A key that has been used before: return the cursor of its first publish.
if key then
  local first = redis.call('GET', key)
  if first then return '=' .. first end
end

-- Another fence: this Redis has lost the memory that gave out the last offsets (restart, failover). Begin a new epoch,
-- so that no offset is used twice.
local m = redis.call('HMGET', meta, 'g', 'e')
local epoch = m[2]
if m[1] ~= ARGV[3] or not epoch then
  epoch = ARGV[4]
  redis.call('DEL', meta, stream)
  redis.call('HSET', meta, 'g', ARGV[3], 'e', epoch)
end

-- Take one offset for each message, and keep the messages.
local count = #ARGV - 8
local before = redis.call('HINCRBY', meta, 's', count) - count
for i = 1, count do
  redis.call('XADD', stream, 'MAXLEN', '~', ARGV[5], (before + i) .. '-0', 'd', ARGV[8 + i])
end

-- The whole stream expires at once, so its time is renewed before the youngest message has less than the ttl left:
-- with a quarter in reserve that happens once per quarter, not once per message.
local ttl = tonumber(ARGV[6])
if redis.call('PTTL', stream) < ttl then
  redis.call('PEXPIRE', stream, math.floor(ttl * 1.25))
  redis.call('PEXPIRE', meta, ARGV[7])
end

-- Send them in one envelope: several tails have their lengths before them.
local sent = ARGV[9]
if count > 1 then
  local parts = {}
  for i = 1, count do parts[i] = struct.pack('>I4', #ARGV[8 + i]) .. ARGV[8 + i] end
  sent = table.concat(parts)
end
redis.call('PUBLISH', ARGV[1], ARGV[2] .. epoch .. struct.pack('>I8', before + 1) .. sent)

local cursor = epoch .. (before + 1)
if key then redis.call('SET', key, cursor, 'PX', ARGV[8]) end
return '+' .. cursor
