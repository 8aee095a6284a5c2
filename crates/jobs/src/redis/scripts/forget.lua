-- Forgets a worker, and what it was told. ARGV: worker, sender.
for _, command in ipairs(redis.call('ZRANGE', Q .. 'orders:' .. ARGV[1], 0, -1)) do
    redis.call('DEL', Q .. 'order:' .. command)
    redis.call('ZREM', Q .. 'orders', command)
end
redis.call('DEL', Q .. 'orders:' .. ARGV[1], Q .. 'worker:' .. ARGV[1])
redis.call('ZREM', Q .. 'workers', ARGV[1])
tell(ARGV[2], 'news')
return { 'ok' }
