-- Gives messages of one room their places, keeps them and sends them: one round trip, one push for each node.
-- KEYS: meta, stream [, idempotency: then there is one message]
-- ARGV: channel, envelope head, fence, epoch if a new one begins, messages to keep, their ttl ms, meta ttl ms,
--       idempotency ttl ms, envelope tails...
-- Answers "+" for new messages or "=" for a repeated one, then epoch and the first one's offset; the others follow on.
local meta, stream, key = KEYS[1], KEYS[2], KEYS[3]
if key then
  local first = redis.call('GET', key)
  if first then return '=' .. first end
end
local m = redis.call('HMGET', meta, 'g', 'e')
local epoch = m[2]
-- Another fence: this memory is not the one that gave out the last offsets (restart, failover). Never reuse them.
if m[1] ~= ARGV[3] or not epoch then
  epoch = ARGV[4]
  redis.call('DEL', meta, stream)
  redis.call('HSET', meta, 'g', ARGV[3], 'e', epoch)
end
local count = #ARGV - 8
local before = redis.call('HINCRBY', meta, 's', count) - count
local sent = ARGV[9]
for i = 1, count do
  redis.call('XADD', stream, 'MAXLEN', '~', ARGV[5], (before + i) .. '-0', 'd', ARGV[8 + i])
end
if count > 1 then
  local parts = {}
  for i = 1, count do parts[i] = struct.pack('>I4', #ARGV[8 + i]) .. ARGV[8 + i] end
  sent = table.concat(parts)
end
-- The whole stream expires at once, so its time is renewed before the youngest message has less than the ttl left:
-- with a quarter in reserve that is once per quarter, not once per message.
local ttl = tonumber(ARGV[6])
if redis.call('PTTL', stream) < ttl then
  redis.call('PEXPIRE', stream, math.floor(ttl * 1.25))
  redis.call('PEXPIRE', meta, ARGV[7])
end
redis.call('PUBLISH', ARGV[1], ARGV[2] .. epoch .. struct.pack('>I8', before + 1) .. sent)
local place = epoch .. (before + 1)
if key then redis.call('SET', key, place, 'PX', ARGV[8]) end
return '+' .. place
