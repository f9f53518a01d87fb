-- Notes that a session came or went, and tells members if it is a user's first or last one.
-- KEYS: sessions, users, rooms of the partition, the owner's rooms in the partition
-- ARGV: enter|leave, session, owner (8 bytes), presence payload, announce flag to keep, tell now?, channel,
--       head of joined, head of left, envelope tail, room, first version
-- An entry is owner, announce flag, payload. Only its owner's leave removes it: a session that another node has
-- taken over stays. A payload is: user bytes u16 (0xFFFF: anonymous), user, info.
local sessions, users, rooms, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session, owner, channel, room = ARGV[2], ARGV[3], ARGV[7], ARGV[11]

local function user_of(payload)
  local len = struct.unpack('>H', payload)
  if len == 65535 then return nil end
  return 'u' .. string.sub(payload, 3, 2 + len)
end

local function change(by, head, payload, tell)
  redis.call('HINCRBY', users, 'U', by)
  redis.call('HSETNX', users, 'v', ARGV[12])
  local version = redis.call('HINCRBY', users, 'v', 1)
  if tell then redis.call('PUBLISH', channel, head .. string.rep('\0', 8) .. struct.pack('>I8', version) .. ARGV[10] .. payload) end
end

local function count(field, by)
  local n = redis.call('HINCRBY', users, field, by)
  if n <= 0 then redis.call('HDEL', users, field) end
  return n
end

local function leave(entry, tell)
  local payload = string.sub(entry, 10)
  redis.call('HDEL', sessions, session)
  if count('n' .. string.sub(entry, 1, 8), -1) <= 0 and string.sub(entry, 1, 8) == owner then
    redis.call('SREM', own, room)
  end
  local user = user_of(payload)
  if not user or count(user, -1) <= 0 then change(-1, ARGV[9], payload, tell and string.sub(entry, 9, 9) == '1') end
end

local entry = redis.call('HGET', sessions, session)

if ARGV[1] == 'leave' then
  if not entry or string.sub(entry, 1, 8) ~= owner then return 0 end
  leave(entry, ARGV[6] == '1')
  if redis.call('EXISTS', sessions) == 0 then
    redis.call('ZREM', rooms, room)
    -- The version outlives the last member for an hour, for those who still compare with it.
    redis.call('PEXPIRE', users, 3600000)
  end
  return 1
end

local user = user_of(ARGV[4])
if entry and user_of(string.sub(entry, 10)) ~= user then
  leave(entry, true)
  entry = false
end
redis.call('HSET', sessions, session, owner .. ARGV[5] .. ARGV[4])
if entry then
  if string.sub(entry, 1, 8) ~= owner then
    count('n' .. string.sub(entry, 1, 8), -1)
    count('n' .. owner, 1)
    redis.call('SADD', own, room)
  end
  return 0
end
if redis.call('HLEN', sessions) == 1 then
  redis.call('ZADD', rooms, 0, room)
  if (redis.call('HGET', users, 'U') or '0') ~= '0' then
    -- The sessions were evicted and their counts were not.
    local version = redis.call('HGET', users, 'v')
    redis.call('DEL', users)
    redis.call('HSET', users, 'v', version or ARGV[12])
  end
  redis.call('PERSIST', users)
end
if count('n' .. owner, 1) == 1 then redis.call('SADD', own, room) end
if not user or count(user, 1) == 1 then change(1, ARGV[8], ARGV[4], ARGV[6] == '1') end
return 1
