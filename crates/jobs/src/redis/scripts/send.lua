-- Gives an order. ARGV: worker, order, expires, now, sender.
local command = int(redis.call('HINCRBY', Q .. 'meta', 'orders', 1))
redis.call('HSET', Q .. 'order:' .. command, 'worker', ARGV[1], 'order', ARGV[2], 'expires', ARGV[3], 'sent', ARGV[4])
redis.call('ZADD', Q .. 'orders:' .. ARGV[1], command, command)
redis.call('ZADD', Q .. 'orders', ARGV[3], command)
tell(ARGV[5], 'queue')
return { command }
