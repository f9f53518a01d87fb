-- Gives a message its place, keeps it and sends it: one round trip.
-- KEYS: meta, stream [, idempotency]
-- ARGV: channel, envelope head, envelope tail, fence, epoch if a new one begins, messages to keep, their ttl ms,
--       meta ttl ms, idempotency ttl ms
-- Answers "+" for a new message or "=" for a repeated one, then epoch and offset.
local meta, stream, key = KEYS[1], KEYS[2], KEYS[3]
if key then
  local first = redis.call('GET', key)
  if first then return '=' .. first end
end
local m = redis.call('HMGET', meta, 'g', 'e')
local epoch = m[2]
-- Another fence: this memory is not the one that gave out the last offsets (restart, failover). Never reuse them.
if m[1] ~= ARGV[4] or not epoch then
  epoch = ARGV[5]
  redis.call('DEL', meta, stream)
  redis.call('HSET', meta, 'g', ARGV[4], 'e', epoch)
end
local offset = redis.call('HINCRBY', meta, 's', 1)
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[6], offset .. '-0', 'd', ARGV[3])
-- The whole stream expires at once, so its time is renewed before the youngest message has less than the ttl left:
-- with a quarter in reserve that is once per quarter, not once per message.
local ttl = tonumber(ARGV[7])
if redis.call('PTTL', stream) < ttl then
  redis.call('PEXPIRE', stream, math.floor(ttl * 1.25))
  redis.call('PEXPIRE', meta, ARGV[8])
end
redis.call('PUBLISH', ARGV[1], ARGV[2] .. epoch .. struct.pack('>I8', offset) .. ARGV[3])
local place = epoch .. offset
if key then redis.call('SET', key, place, 'PX', ARGV[9]) end
return '+' .. place
