-- Keeps a chunk of an upload for a while after the latest: none is left for ever, whenever who sends them stops.
local parts, i, data, seconds = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
redis.call('HSET', parts, i, data)
redis.call('EXPIRE', parts, seconds)
