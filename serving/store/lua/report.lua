-- Keeps what a replica reports about itself, with the time of this server, so that no two hosts' clocks are compared.
-- A full store refuses a script whose first write adds something, so the last report is deleted first.
local replica, report = unpack(ARGV)
local now = redis.call('TIME')
redis.call('HDEL', KEYS[1], replica)
redis.call('HSET', KEYS[1], replica, now[1] .. '.' .. string.format('%06d', now[2]) .. ' ' .. report)
