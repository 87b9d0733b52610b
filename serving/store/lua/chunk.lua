-- Keeps a chunk of an upload. All chunks of the upload expire some seconds after the latest one, so that an upload
-- given up at any point leaves nothing behind.
local parts, i, data, seconds = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
redis.call('HSET', parts, i, data)
redis.call('EXPIRE', parts, seconds)
