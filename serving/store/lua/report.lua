-- Keeps what a replica reports about itself, with the time of this server, so that no two hosts' clocks are compared.
local replica, report = unpack(ARGV)
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], replica, now[1] .. '.' .. string.format('%06d', now[2]) .. ' ' .. report)
