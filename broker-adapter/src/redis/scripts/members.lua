-- What the scripts about members share; it stands before each of them. A room's members are in two hashes: `sessions`
-- (session -> owner, announce flag, presence payload) and `users` (u<user> -> sessions of the user; U -> users; v -> version).
-- A payload is: user bytes u16 (0xFFFF: anonymous), user, info.

local function owner_of(entry) return string.sub(entry, 1, 8) end
local function payload_of(entry) return string.sub(entry, 10) end

-- The field in which the sessions of the payload's user are counted; nil for an anonymous session.
local function user_of(payload)
  local len = struct.unpack('>H', payload)
  if len == 65535 then return nil end
  return 'u' .. string.sub(payload, 3, 2 + len)
end

-- Counts sessions of a user, and removes the field at 0.
local function count(users, user, by)
  local n = redis.call('HINCRBY', users, user, by)
  if n <= 0 then redis.call('HDEL', users, user) end
  return n
end

-- Counts a user in or out, gives the change its version, and sends the event: `head` and `tail` are the envelope around
-- the version. Without a head nothing is sent.
local function change_users(users, by, first_version, channel, head, tail)
  redis.call('HINCRBY', users, 'U', by)
  redis.call('HSETNX', users, 'v', first_version)
  local version = redis.call('HINCRBY', users, 'v', 1)
  if head then
    redis.call('PUBLISH', channel, head .. string.rep('\0', 8) .. struct.pack('>I8', version) .. tail)
  end
end

-- Removes a session that has this entry. The event is for the last session of a user, if the entry says that it is
-- announced.
local function remove(sessions, users, session, entry, first_version, channel, head, tail)
  redis.call('HDEL', sessions, session)
  local user = user_of(payload_of(entry))
  if not user or count(users, user, -1) <= 0 then
    if string.sub(entry, 9, 9) ~= '1' then head = nil end
    change_users(users, -1, first_version, channel, head, tail .. payload_of(entry))
  end
end

-- After the last session of a room: its version is kept for an hour, since clients may still compare with it.
local function forget_if_empty(sessions, users, rooms, room)
  if redis.call('EXISTS', sessions) == 0 then
    redis.call('ZREM', rooms, room)
    redis.call('PEXPIRE', users, 3600000)
  end
end

-- Redis's own time in ms, so that the nodes' clocks need not agree.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

