-- Records that a session enters or leaves a room, and sends members an event if it is a user's first or last session.
-- KEYS: sessions, users, rooms of the partition, the owner's rooms in the partition
-- ARGV: enter|leave, session, owner (8 bytes), presence payload, announce the leave one day (0|1), announce now (0|1),
--       channel, head of joined, head of left, envelope tail, room, first version
-- Returns 1 if the session was not in the room before, or has left it now; else 0.
-- An entry is owner, announce flag, payload. Only its owner's leave removes it: if another node has taken the session
-- over, the session stays. A payload is: user bytes u16 (0xFFFF: anonymous), user, info.
local sessions, users, rooms, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session, owner, channel, room = ARGV[2], ARGV[3], ARGV[7], ARGV[11]

local function owner_of(entry) return string.sub(entry, 1, 8) end
local function payload_of(entry) return string.sub(entry, 10) end

-- The field in which the sessions of the payload's user are counted; nil for an anonymous session.
local function user_of(payload)
  local len = struct.unpack('>H', payload)
  if len == 65535 then return nil end
  return 'u' .. string.sub(payload, 3, 2 + len)
end

-- Counts a user in or out, gives the change its version, and sends the event.
local function change_users(by, head, payload, announce)
  redis.call('HINCRBY', users, 'U', by)
  redis.call('HSETNX', users, 'v', ARGV[12])
  local version = redis.call('HINCRBY', users, 'v', 1)
  if announce then
    redis.call('PUBLISH', channel, head .. string.rep('\0', 8) .. struct.pack('>I8', version) .. ARGV[10] .. payload)
  end
end

-- Counts sessions of a user or of an owner, and removes the field at 0.
local function count(field, by)
  local n = redis.call('HINCRBY', users, field, by)
  if n <= 0 then redis.call('HDEL', users, field) end
  return n
end

local function leave(entry, announce)
  local payload = payload_of(entry)
  redis.call('HDEL', sessions, session)
  if count('n' .. owner_of(entry), -1) <= 0 and owner_of(entry) == owner then
    redis.call('SREM', own, room)
  end
  local user = user_of(payload)
  if not user or count(user, -1) <= 0 then
    change_users(-1, ARGV[9], payload, announce and string.sub(entry, 9, 9) == '1')
  end
end

local entry = redis.call('HGET', sessions, session)

if ARGV[1] == 'leave' then
  if not entry or owner_of(entry) ~= owner then return 0 end
  leave(entry, ARGV[6] == '1')
  if redis.call('EXISTS', sessions) == 0 then
    redis.call('ZREM', rooms, room)
    -- The version is kept for an hour after the last member: clients may still compare with it.
    redis.call('PEXPIRE', users, 3600000)
  end
  return 1
end

-- The session has changed its user: the old user's session leaves first.
local user = user_of(ARGV[4])
if entry and user_of(payload_of(entry)) ~= user then
  leave(entry, true)
  entry = false
end
redis.call('HSET', sessions, session, owner .. ARGV[5] .. ARGV[4])

-- The session is in the room already: its info was replaced, and its owner may be another node now.
if entry then
  if owner_of(entry) ~= owner then
    count('n' .. owner_of(entry), -1)
    count('n' .. owner, 1)
    redis.call('SADD', own, room)
  end
  return 0
end

-- The first session of the room.
if redis.call('HLEN', sessions) == 1 then
  redis.call('ZADD', rooms, 0, room)
  if (redis.call('HGET', users, 'U') or '0') ~= '0' then
    -- Redis has evicted the sessions but not their counts: start counting anew, from the last version.
    local version = redis.call('HGET', users, 'v')
    redis.call('DEL', users)
    redis.call('HSET', users, 'v', version or ARGV[12])
  end
  redis.call('PERSIST', users)
end

if count('n' .. owner, 1) == 1 then redis.call('SADD', own, room) end
if not user or count(user, 1) == 1 then change_users(1, ARGV[8], ARGV[4], ARGV[6] == '1') end
return 1
